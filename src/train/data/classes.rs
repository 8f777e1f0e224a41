//! What each tokenizer class of transformers adds to its files: default special tokens, and the tokens that frame a text.

/// What a class of tokenizers has where its files do not say: the tokens of [`ROLES`], empty for none.
pub type Defaults = [&'static str; 7];

const ROBERTA: Defaults = ["<s>", "</s>", "<unk>", "</s>", "<pad>", "<s>", "<mask>"];
const BERT: Defaults = ["", "", "[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]"];
const GPT2: Defaults = ["<|endoftext|>", "<|endoftext|>", "<|endoftext|>", "", "", "", ""];
const LLAMA: Defaults = ["<s>", "</s>", "<unk>", "", "", "", ""];
const T5: Defaults = ["", "</s>", "<unk>", "", "<pad>", "", ""];
const XLNET: Defaults = ["<s>", "</s>", "<unk>", "<sep>", "<pad>", "<cls>", "<mask>"];

/// Classes by name, without `Tokenizer` and `TokenizerFast` at the end.
pub const CLASSES: &[(&[&str], Defaults)] = &[
    (
        &[
            "Bart",
            "Barthez",
            "Blenderbot",
            "Camembert",
            "LED",
            "LayoutLMv3",
            "LayoutXLM",
            "Longformer",
            "MBart",
            "Mvp",
            "Nllb",
            "Roberta",
            "XLMRoberta",
        ],
        ROBERTA,
    ),
    (
        &[
            "Bert",
            "ConvBert",
            "DPRQuestionEncoder",
            "DPRContextEncoder",
            "DPRReader",
            "DistilBert",
            "Electra",
            "LayoutLM",
            "LayoutLMv2",
            "Lxmert",
            "MobileBert",
            "Realm",
            "RetriBert",
            "RoFormer",
            "Splinter",
            "SqueezeBert",
        ],
        BERT,
    ),
    (&["GPT2", "CodeGen", "GPTNeoX", "Whisper"], GPT2),
    (&["Llama", "CodeLlama"], LLAMA),
    (&["Gemma"], ["<bos>", "<eos>", "<unk>", "", "<pad>", "", ""]),
    (&["Cohere"], ["<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>", "<UNK>", "", "", "", ""]),
    (&["Qwen2"], ["", "<|endoftext|>", "<|endoftext|>", "", "<|endoftext|>", "", ""]),
    (&["Bloom"], ["<s>", "</s>", "<unk>", "", "<pad>", "", ""]),
    (&["CLIP"], ["<|startoftext|>", "<|endoftext|>", "<|endoftext|>", "", "<|endoftext|>", "", ""]),
    (&["T5", "MT5"], T5),
    (&["Udop"], ["", "</s>", "<unk>", "</s>", "<pad>", "", ""]),
    (&["Pegasus"], ["", "</s>", "<unk>", "", "<pad>", "", "<mask_2>"]),
    (&["Reformer"], ["", "</s>", "<unk>", "", "", "", ""]),
    (&["OpenAIGPT"], ["", "", "<unk>", "", "", "", ""]),
    (&["SeamlessM4T", "XGLM"], ["<s>", "</s>", "<unk>", "</s>", "<pad>", "<s>", ""]),
    (&["MBart50"], ["", "</s>", "<unk>", "</s>", "<pad>", "<s>", "<mask>"]),
    (&["Herbert"], ["", "", "<unk>", "</s>", "<pad>", "<s>", "<mask>"]),
    (&["MPNet"], ["<s>", "</s>", "[UNK]", "</s>", "<pad>", "<s>", "<mask>"]),
    (&["XLNet", "Cpm", "Funnel"], XLNET),
    (&["Albert", "RemBert"], ["[CLS]", "[SEP]", "<unk>", "[SEP]", "<pad>", "[CLS]", "[MASK]"]),
    (&["BigBird"], ["<s>", "</s>", "<unk>", "[SEP]", "<pad>", "[CLS]", "[MASK]"]),
    (&["Deberta", "DebertaV2"], ["[CLS]", "[SEP]", "[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]"]),
    (&["FNet"], ["", "", "<unk>", "[SEP]", "<pad>", "[CLS]", "[MASK]"]),
];

/// Classes whose post-processor is made of `add_bos_token` and `add_eos_token`, with what those are by default.
pub const FRAMED: &[(&str, bool)] =
    &[("Llama", true), ("CodeLlama", true), ("Gemma", true), ("Cohere", true), ("GPTNeoX", false)];

/// Classes that pad on the left.
pub const LEFT: &[&str] = &["Llama", "CodeLlama", "Gemma", "Cohere", "XLNet"];

/// Classes that put their own `do_lower_case`, `strip_accents` and `tokenize_chinese_chars` into the normalizer.
pub const CASED: &[&str] = &[
    "Bert",
    "ConvBert",
    "DPRQuestionEncoder",
    "DPRContextEncoder",
    "DPRReader",
    "DistilBert",
    "Electra",
    "Funnel",
    "LayoutLM",
    "Lxmert",
    "MobileBert",
    "Realm",
    "RetriBert",
    "SqueezeBert",
];

/// Those that leave `tokenize_chinese_chars` as the file has it.
pub const CASED_BUT_CHINESE: &[&str] = &["LayoutLMv2", "MPNet", "Splinter"];

/// Classes that frame texts with tokens of the language they are set to.
pub const LANGUAGES: &[&str] = &["MBart", "MBart50", "Nllb", "SeamlessM4T"];

/// Classes by `model_type` of config.json, for those that a class changes.
pub const MODELS: &[(&str, &str)] = &[
    ("llama", "Llama"),
    ("mistral", "Llama"),
    ("ministral", "Llama"),
    ("mistral3", "Llama"),
    ("mixtral", "Llama"),
    ("llama4", "Llama"),
    ("mllama", "Llama"),
    ("phi3", "Llama"),
    ("phimoe", "Llama"),
    ("deepseek_v2", "Llama"),
    ("deepseek_v3", "Llama"),
    ("jamba", "Llama"),
    ("jetmoe", "Llama"),
    ("zamba", "Llama"),
    ("zamba2", "Llama"),
    ("persimmon", "Llama"),
    ("arcee", "Llama"),
    ("ernie4_5", "Llama"),
    ("llava", "Llama"),
    ("code_llama", "CodeLlama"),
    ("gemma", "Gemma"),
    ("gemma2", "Gemma"),
    ("gemma3", "Gemma"),
    ("gemma3_text", "Gemma"),
    ("gemma3n", "Gemma"),
    ("recurrent_gemma", "Gemma"),
    ("cohere", "Cohere"),
    ("cohere2", "Cohere"),
    ("gpt_neox", "GPTNeoX"),
    ("mamba", "GPTNeoX"),
    ("mamba2", "GPTNeoX"),
    ("falcon_mamba", "GPTNeoX"),
    ("mpt", "GPTNeoX"),
    ("olmo", "GPTNeoX"),
    ("olmo2", "GPTNeoX"),
    ("olmoe", "GPTNeoX"),
    ("rwkv", "GPTNeoX"),
    ("stablelm", "GPTNeoX"),
    ("gpt2", "GPT2"),
    ("gpt_neo", "GPT2"),
    ("gptj", "GPT2"),
    ("gpt_bigcode", "GPT2"),
    ("opt", "GPT2"),
    ("starcoder2", "GPT2"),
    ("qwen2", "Qwen2"),
    ("qwen2_moe", "Qwen2"),
    ("qwen3", "Qwen2"),
    ("qwen3_moe", "Qwen2"),
    ("bloom", "Bloom"),
    ("bert", "Bert"),
    ("distilbert", "DistilBert"),
    ("electra", "Electra"),
    ("mobilebert", "MobileBert"),
    ("squeezebert", "SqueezeBert"),
    ("albert", "Albert"),
    ("deberta", "Deberta"),
    ("deberta-v2", "DebertaV2"),
    ("roberta", "Roberta"),
    ("xlm-roberta", "XLMRoberta"),
    ("camembert", "Camembert"),
    ("mpnet", "MPNet"),
    ("bart", "Bart"),
    ("t5", "T5"),
    ("mt5", "MT5"),
    ("umt5", "T5"),
    ("xlnet", "XLNet"),
    ("xglm", "XGLM"),
];
