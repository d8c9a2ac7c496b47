"""The words that settings take, each in one place: arms, gates, methods, sites, splits, strategies, kinds of noise, tokens."""

ARMS = ("zero-shot", "local", "global", "global+finetune", "personalized", "neutral", "centralized")
GATES = ("none", "hidden", "low-rank", "self", "cross", "scalar")
METHODS = ("gated-lora", "lora", "scalar-gate", "dora", "bottleneck", "prefix", "bitfit", "full", "scratch")
LOW_RANK_METHODS = METHODS[:3]  # adapters of fl.adapters: they can be stacked, split by A and B, packed and served
UNSIZED_METHODS = ("bitfit", "full", "scratch")  # what they train are the base's own tensors
SITES = ("encoder.self", "decoder.self", "decoder.cross", "ffn")
SPLITS = ("gates", "fedsa", "ffa", "all-shared", "all-private")
SPEECH, LANGUAGE_ID, DIGITS, NO_OP = "speech", "language-id", "digits", "no-op"  # the names of tasks: fl.tasks.table
OWN_MANIFEST = "own"  # as a manifest: that of each deployed device
DEVICE, EDGE = "device", "edge"  # where the devices' updates are put together
STRATEGIES = (  # the rows of strategies.registry
    "fedavg",
    "fednova",
    "scaffold",
    "ffa",
    "fedsa",
    "rolora",
    "flexlora",
    "hetlora",
    "fedex",
    "flora",
    "median",
    "trimmed-mean",
    "krum",
    "multi-krum",
    "bulyan",
    "norm-bound",
    "geometric-median",
)
# Strategies that devices of different ranks take part in: those that decompose products, and those that average coordinates.
BEST_PAIR_STRATEGIES, COORDINATE_STRATEGIES = ("flexlora", "fedex", "flora"), ("fedavg", "hetlora")
COORDINATE_GATES = ("low-rank", "self", "cross")  # with a row for each coordinate of the rank
SERVER_OPTIMIZERS = ("none", "fedavgm", "fedadagrad", "fedyogi", "fedadam")
NONE = "none"
SERVER_NOISE, DISTRIBUTED_NOISE, LOCAL_NOISE = "server", "distributed", "local"  # who adds the noise
PAIRWISE = "pairwise"  # masks of secure sums
LABEL_SWAP = "label-swap"  # an attack on data; the others are attacks on updates
ATTACKS = (NONE, "sign-flip", "scale", LABEL_SWAP, "random", "collusion")
PERSONALIZATIONS = (  # the rows of fl.adapters.blend, and what the arm personalized does
    "gates",
    "fedper",
    "fedrep",
    "ditto",
    "apfl",
    "pfedme",
    "feddpa",
    "interpolation",
    "clusters",
)
OWN, LATIN = "own", "latin"  # tokens of the base itself, and without Korean
TOKENS = (OWN, LATIN, "syllables", "all-syllables", "jamo", "compat-jamo")  # the forms are those of fl.speech.hangul
LAYERS_PREFIX = "layers:"  # and a regular expression over tensor names
LAST_PREFIX = "last:"  # and a number of layers
MAX_RANK = 1024
