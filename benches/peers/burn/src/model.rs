//! BERT's encoder and Llama's decoder with LoRA on queries and values, from burn's own modules; random weights.
//!
//! Base weights ask for no gradient, so that autodiff computes none for them.

use burn::module::{Module, Param};
use burn::nn::loss::{CrossEntropyLoss, CrossEntropyLossConfig};
use burn::nn::{
    Embedding, EmbeddingConfig, Initializer, LayerNorm, LayerNormConfig, Linear, LinearConfig, RmsNorm, RmsNormConfig,
};
use burn::tensor::activation::{gelu, silu, softmax, tanh};
use burn::tensor::module::linear;
use burn::tensor::{Device, Distribution, Int, Tensor};

const INITIALIZER: Initializer = Initializer::Normal { mean: 0.0, std: 0.02 };

fn frozen_linear(inputs: usize, outputs: usize, bias: bool, device: &Device) -> Linear {
    LinearConfig::new(inputs, outputs).with_bias(bias).with_initializer(INITIALIZER).init(device).no_grad()
}

fn frozen_embedding(rows: usize, columns: usize, device: &Device) -> Embedding {
    EmbeddingConfig::new(rows, columns).with_initializer(INITIALIZER).init(device).no_grad()
}

/// `W x + s B A x`.
#[derive(Module, Debug)]
pub struct LoraLinear {
    base: Linear,
    a: Param<Tensor<2>>,
    b: Param<Tensor<2>>,
    scale: f64,
}

impl LoraLinear {
    fn new(inputs: usize, outputs: usize, bias: bool, rank: usize, device: &Device) -> Self {
        LoraLinear {
            base: frozen_linear(inputs, outputs, bias, device),
            a: Param::from_tensor(Tensor::random([inputs, rank], Distribution::Normal(0.0, 0.02), device)),
            b: Param::from_tensor(Tensor::zeros([rank, outputs], device)),
            scale: 2.0,
        }
    }

    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let reduced = linear(x.clone(), self.a.val(), None) * self.scale;
        self.base.forward(x) + linear(reduced, self.b.val(), None)
    }
}

/// `(B, T, H D)` to `(B, H, T, D)`.
fn split(x: Tensor<3>, heads: usize) -> Tensor<4> {
    let [batch, seq, width] = x.dims();
    x.reshape([batch, seq, heads, width / heads]).swap_dims(1, 2)
}

/// Attention over `(B, H, T, D)`; `bias` is added to the scores. Gives `(B, T, H D)`.
fn attention(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, bias: Option<Tensor<4>>) -> Tensor<3> {
    let [batch, heads, seq, width] = q.dims();
    let mut scores = (q * (width as f64).powf(-0.5)).matmul(k.transpose());
    if let Some(bias) = bias {
        scores = scores + bias;
    }
    softmax(scores, 3).matmul(v).swap_dims(1, 2).reshape([batch, seq, heads * width])
}

#[derive(Module, Debug)]
struct BertLayer {
    query: LoraLinear,
    key: Linear,
    value: LoraLinear,
    output: Linear,
    attention_norm: LayerNorm,
    up: Linear,
    down: Linear,
    norm: LayerNorm,
    heads: usize,
}

impl BertLayer {
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let q = split(self.query.forward(x.clone()), self.heads);
        let k = split(self.key.forward(x.clone()), self.heads);
        let v = split(self.value.forward(x.clone()), self.heads);
        let x = self.attention_norm.forward(self.output.forward(attention(q, k, v, None)) + x);
        self.norm.forward(self.down.forward(gelu(self.up.forward(x.clone()))) + x)
    }
}

/// A BERT encoder with its pooler and a classifier over two labels.
#[derive(Module, Debug)]
pub struct Bert {
    words: Embedding,
    positions: Embedding,
    types: Embedding,
    norm: LayerNorm,
    layers: Vec<BertLayer>,
    pooler: Linear,
    classifier: Linear,
    loss: CrossEntropyLoss,
}

impl Bert {
    fn new(layers: usize, rank: usize, device: &Device) -> Self {
        let (width, inner, heads) = (384, 1536, 12);
        let norm = || LayerNormConfig::new(width).with_epsilon(1e-12).init(device).no_grad();
        let lora = || LoraLinear::new(width, width, true, rank, device);
        let plain = |inputs, outputs| frozen_linear(inputs, outputs, true, device);
        Bert {
            words: frozen_embedding(30522, width, device),
            positions: frozen_embedding(512, width, device),
            types: frozen_embedding(2, width, device),
            norm: norm(),
            layers: (0..layers)
                .map(|_| BertLayer {
                    query: lora(),
                    key: plain(width, width),
                    value: lora(),
                    output: plain(width, width),
                    attention_norm: norm(),
                    up: plain(width, inner),
                    down: plain(inner, width),
                    norm: norm(),
                    heads,
                })
                .collect(),
            pooler: plain(width, width),
            classifier: plain(width, 2),
            loss: CrossEntropyLossConfig::new().init(device),
        }
    }

    fn loss(&self, tokens: Tensor<2, Int>, labels: Tensor<1, Int>) -> Tensor<1> {
        let [batch, seq] = tokens.dims();
        let device = tokens.device();
        let positions = Tensor::<1, Int>::arange(0..seq as i64, &device).unsqueeze::<2>();
        let types = Tensor::<2, Int>::zeros([1, 1], &device);
        let x = self.words.forward(tokens) + self.positions.forward(positions) + self.types.forward(types);
        let x = self.layers.iter().fold(self.norm.forward(x), |x, layer| layer.forward(x));
        let width = x.dims()[2];
        let first = x.slice([0..batch, 0..1, 0..width]).reshape([batch, width]);
        self.loss.forward(self.classifier.forward(tanh(self.pooler.forward(first))), labels)
    }
}

#[derive(Module, Debug)]
struct LlamaLayer {
    attention_norm: RmsNorm,
    query: LoraLinear,
    key: Linear,
    value: LoraLinear,
    output: Linear,
    norm: RmsNorm,
    gate: Linear,
    up: Linear,
    down: Linear,
    heads: usize,
    groups: usize,
}

/// What every layer's attention reads: rotary tables `(1, 1, T, D / 2)` and the causal bias `(1, 1, T, T)`.
struct Positions {
    cos: Tensor<4>,
    sin: Tensor<4>,
    causal: Tensor<4>,
}

impl Positions {
    fn rotate(&self, x: Tensor<4>) -> Tensor<4> {
        let half = x.dims()[3] / 2;
        let halves = x.split(half, 3);
        let (low, high) = (halves[0].clone(), halves[1].clone());
        let (cos, sin) = (self.cos.clone(), self.sin.clone());
        Tensor::cat(vec![low.clone() * cos.clone() - high.clone() * sin.clone(), high * cos + low * sin], 3)
    }
}

/// `(B, G, T, D)` to `(B, G R, T, D)`, each group R times.
fn repeat_groups(x: Tensor<4>, times: usize) -> Tensor<4> {
    let [batch, groups, seq, width] = x.dims();
    x.reshape([batch, groups, 1, seq, width]).expand([batch, groups, times, seq, width]).reshape([
        batch,
        groups * times,
        seq,
        width,
    ])
}

impl LlamaLayer {
    fn forward(&self, x: Tensor<3>, positions: &Positions) -> Tensor<3> {
        let h = self.attention_norm.forward(x.clone());
        let q = positions.rotate(split(self.query.forward(h.clone()), self.heads));
        let k = positions.rotate(split(self.key.forward(h.clone()), self.groups));
        let v = split(self.value.forward(h), self.groups);
        let times = self.heads / self.groups;
        let (k, v) = (repeat_groups(k, times), repeat_groups(v, times));
        let x = x + self.output.forward(attention(q, k, v, Some(positions.causal.clone())));
        let h = self.norm.forward(x.clone());
        x + self.down.forward(silu(self.gate.forward(h.clone())) * self.up.forward(h))
    }
}

/// A Llama decoder with its head tied to the embedding.
#[derive(Module, Debug)]
pub struct Llama {
    words: Embedding,
    layers: Vec<LlamaLayer>,
    norm: RmsNorm,
    cos: Tensor<4>,
    sin: Tensor<4>,
    causal: Tensor<4>,
    loss: CrossEntropyLoss,
}

impl Llama {
    fn new(layers: usize, rank: usize, seq: usize, device: &Device) -> Self {
        let (width, inner, heads, groups) = (576, 1536, 9, 3);
        let head = width / heads;
        let norm = || RmsNormConfig::new(width).init(device).no_grad();
        let lora = |outputs| LoraLinear::new(width, outputs, false, rank, device);
        let plain = |inputs, outputs| frozen_linear(inputs, outputs, false, device);
        let angle = |i: usize| (i / (head / 2)) as f32 * 10000f32.powf(-2.0 * (i % (head / 2)) as f32 / head as f32);
        let table = |of: fn(f32) -> f32| {
            let values: Vec<f32> = (0..seq * head / 2).map(|i| of(angle(i))).collect();
            Tensor::<1>::from_floats(values.as_slice(), device).reshape([1, 1, seq, head / 2])
        };
        let causal: Vec<f32> = (0..seq * seq).map(|i| if i % seq > i / seq { f32::MIN / 2.0 } else { 0.0 }).collect();
        Llama {
            words: frozen_embedding(49152, width, device),
            layers: (0..layers)
                .map(|_| LlamaLayer {
                    attention_norm: norm(),
                    query: lora(width),
                    key: plain(width, groups * head),
                    value: lora(groups * head),
                    output: plain(width, width),
                    norm: norm(),
                    gate: plain(width, inner),
                    up: plain(width, inner),
                    down: plain(inner, width),
                    heads,
                    groups,
                })
                .collect(),
            norm: norm(),
            cos: table(f32::cos),
            sin: table(f32::sin),
            causal: Tensor::<1>::from_floats(causal.as_slice(), device).reshape([1, 1, seq, seq]),
            loss: CrossEntropyLossConfig::new().init(device),
        }
    }

    fn loss(&self, tokens: Tensor<2, Int>, labels: Tensor<1, Int>) -> Tensor<1> {
        let positions = Positions { cos: self.cos.clone(), sin: self.sin.clone(), causal: self.causal.clone() };
        let x = self.layers.iter().fold(self.words.forward(tokens), |x, layer| layer.forward(x, &positions));
        let [batch, seq, width] = x.dims();
        let logits = self.norm.forward(x).reshape([batch * seq, width]).matmul(self.words.weight.val().transpose());
        self.loss.forward(logits, labels)
    }
}

/// A model of one of the shapes that are compared.
#[derive(Module, Debug)]
pub enum Model {
    /// `minilm`
    Bert(Bert),
    /// `smollm2-135m`
    Llama(Llama),
}

impl Model {
    /// The model of `shape`; `layers` is its own number where 0.
    pub fn new(shape: &str, layers: usize, rank: usize, seq: usize, device: &Device) -> Self {
        let or = |own| if layers == 0 { own } else { layers };
        match shape {
            "minilm" => Model::Bert(Bert::new(or(6), rank, device)),
            "smollm2-135m" => Model::Llama(Llama::new(or(30), rank, seq, device)),
            other => panic!("no shape {other}"),
        }
    }

    /// Mean cross-entropy of `tokens (B, T)`: of one label a row for BERT, one a token for Llama.
    pub fn loss(&self, tokens: Tensor<2, Int>, labels: Tensor<1, Int>) -> Tensor<1> {
        match self {
            Model::Bert(model) => model.loss(tokens, labels),
            Model::Llama(model) => model.loss(tokens, labels),
        }
    }
}
