"""What PyTorch reaches on bare products of matrices, the ceiling of a training step that consists of them.

    python torch_matmul.py MxKxN... [device=cpu dtype=f32 warmup=3 steps=10 threads=0]

Prints one JSON object a product: median milliseconds, GFLOP/s. dtype: f32 | tf32 | bf16.
"""
import json, sys, time
import torch

o = dict(device="cpu", dtype="f32", warmup=3, steps=10, threads=0)
products = []
for word in sys.argv[1:]:
    if "=" not in word:
        products.append(word)
        continue
    k, v = word.split("=", 1)
    o[k] = type(o[k])(v)
if o["threads"]:
    torch.set_num_threads(o["threads"])
torch.backends.cuda.matmul.allow_tf32 = o["dtype"] == "tf32"
dtype = torch.bfloat16 if o["dtype"] == "bf16" else torch.float32
for product in products:
    m, k, n = map(int, product.split("x"))
    x, w = torch.randn(m, k, device=o["device"], dtype=dtype), torch.randn(k, n, device=o["device"], dtype=dtype)
    times = []
    for i in range(o["warmup"] + o["steps"]):
        if o["device"] != "cpu":
            torch.cuda.synchronize()
        t = time.perf_counter()
        y = x @ w
        if o["device"] != "cpu":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - t)
    times = sorted(times[o["warmup"]:])
    median = times[len(times) // 2]
    print(json.dumps(dict(system="pytorch " + torch.__version__, product=product, **o, ms=round(median * 1e3, 3), gflops=round(2 * m * k * n / median / 1e9, 1))))
