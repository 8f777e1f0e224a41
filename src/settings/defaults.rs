//! What a setting is where nobody says: each default is named here and nowhere else.

/// Tokens kept of each text.
pub const MAX_LENGTH: usize = 512;
/// Examples to a micro-batch.
pub const BATCH_SIZE: usize = 8;
/// Where to run: a hardware GPU if there is one, else the processor.
pub const DEVICE: &str = "auto";
/// What follows from the labels and the output.
pub const LOSS: &str = "auto";

/// What `contrastive` multiplies cosines by, as in sentence-transformers.
pub const SCALE: f64 = 20.0;
/// The margin of `triplet`, as in sentence-transformers.
pub const MARGIN: f64 = 5.0;
/// What `dpo` weighs log-probabilities by, as in TRL.
pub const BETA: f64 = 0.1;
/// What `distill` divides logits by.
pub const TEMPERATURE: f64 = 2.0;

/// Micro-batches to an optimiser step.
pub const ACCUMULATE: usize = 1;
pub const EPOCHS: usize = 1;
pub const OPTIMIZER: &str = "adamw";
pub const LEARNING_RATE: f64 = 2e-4;
pub const SCHEDULE: &str = "linear";
pub const WARMUP_STEPS: u64 = 0;
pub const WEIGHT_DECAY: f64 = 0.01;
pub const MOMENTUM: f64 = 0.0;
/// One rate for all parameters.
pub const LORA_PLUS: f64 = 1.0;
/// Gradients go to the optimiser as they are.
pub const PRECONDITION: &str = "none";
/// The largest norm of the gradient.
pub const CLIP_NORM: f64 = 1.0;
pub const SEED: u64 = 0;
/// Arithmetic of products.
pub const PRECISION: &str = "auto";
/// Storage of frozen weights.
pub const WEIGHTS: &str = "f32";

/// How a merge is done, and with which ridge: what a comparison finds best.
pub const STRATEGY: &str = "auto";
pub const RIDGE: &str = "auto";
/// Optimiser steps of polishing where a merge keeps too little of the gain.
pub const RESCUE_STEPS: u64 = 50;
/// The learning rate of polishing, of the run's.
pub const POLISHING_RATE: f64 = 0.1;
/// The largest relative difference of an output between two files that should be the same.
pub const TOLERANCE: f64 = 1e-4;

/// The most that EVA may multiply a target's rank by, as in `peft`.
pub const EVA_RHO: f64 = 2.0;

/// Examples, and positions of each, of a step that is timed or whose memory is estimated.
pub const BENCH_BATCH: usize = 8;
pub const BENCH_POSITIONS: usize = 128;
/// Steps that are timed.
pub const BENCH_STEPS: usize = 10;
/// The learning rate of steps that are timed; what they learn is thrown away.
pub const BENCH_LEARNING_RATE: f64 = 1e-4;

/// How `quickstart` trains: on a small model, for a few seconds.
pub const QUICKSTART_FOLDER: &str = "quickstart";
pub const QUICKSTART_BATCH: usize = 25;
pub const QUICKSTART_EPOCHS: usize = 15;
pub const QUICKSTART_LEARNING_RATE: f64 = 5e-3;
pub const QUICKSTART_WARMUP_STEPS: u64 = 20;
