"""What a PyTorch user gets on the same work: one LoRA or ResLoRA training step, timed.

    python torch_lora.py SHAPE [batch=8 seq=128 structure=none rank=8 target='q_proj|v_proj|query|value' steps=10 device=cpu dtype=f32 compile=0]

Prints one JSON object: median step milliseconds, tokens per second, peak memory of the GPU and of the process. dtype: f32 | tf32 | bf16 (autocast) | bf16w (weights in
bf16 too). structure: none | input | block | middle. The step is forward, backward, AdamW on the adapters; one synchronisation a step.
"""
import json, os, resource, sys, time
import torch, torch.nn.functional as F
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "fixtures", "oracle"))
import reslora_ref as R, shapes

o = dict(batch=8, seq=128, structure="none", rank=8, target="q_proj|v_proj|query|value|c_attn", steps=10, device="cpu", dtype="f32", compile=0, threads=0)
for kv in sys.argv[2:]:
    k, v = kv.split("=", 1)
    o[k] = type(o[k])(v)
if o["threads"]:
    torch.set_num_threads(o["threads"])
torch.backends.cuda.matmul.allow_tf32 = o["dtype"] != "f32"
dev = o["device"]
m = shapes.build(sys.argv[1])
if o["dtype"] == "bf16w":
    m = m.bfloat16()
m = m.to(dev)
B, S = o["batch"], o["seq"]
ids = torch.randint(5, 1000, (B, S), device=dev)
mask = torch.ones_like(ids)
blocks = R.attach(m, o["target"], o["structure"], o["rank"], 2 * o["rank"], 2)
m.to(dev)
if o["dtype"] == "bf16w":
    m = m.bfloat16()
blocks = R.link(blocks, lambda: m(ids, mask))
opt = torch.optim.AdamW([p for b in blocks for p in (b.lora_A, b.lora_B)], lr=1e-4, fused=dev != "cpu")
f = torch.compile(m) if o["compile"] else m
cls = "Classification" in type(m.m).__name__
lab = torch.randint(0, 2, (B,), device=dev) if cls else ids


def sync():
    if dev != "cpu":
        torch.cuda.synchronize()


ts = []
for i in range(o["steps"] + 3):
    sync(); t = time.perf_counter()
    with torch.autocast(dev if dev == "cpu" else "cuda", torch.bfloat16, enabled=o["dtype"] == "bf16"):
        lg = f(ids, mask)
        loss = F.cross_entropy(lg.float(), lab) if cls else F.cross_entropy(lg[:, :-1].reshape(-1, lg.shape[-1]).float(), lab[:, 1:].reshape(-1))
    opt.zero_grad(); loss.backward(); opt.step(); sync()
    ts.append(time.perf_counter() - t)
ts = sorted(ts[3:])
med = ts[len(ts) // 2]
mem = torch.cuda.max_memory_allocated() / 2 ** 30 if dev != "cpu" else None
print(json.dumps(dict(system="pytorch " + torch.__version__, shape=sys.argv[1], **o, targets=len(blocks), step_ms=round(med * 1e3, 2), tokens_per_s=round(B * S / med, 1), peak_gib=mem,
                      peak_rss_mib=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1))))
