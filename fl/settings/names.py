"""The words that settings take, each in one place: arms, sites, splits, kinds of noise, attacks, tokens."""

ARMS = ("zero-shot", "local", "global", "global+finetune", "personalized", "neutral", "centralized")
PERSONALIZED = "personalized"  # of the arms, the one whose devices have a part of their own
SITES = ("encoder.self", "decoder.self", "decoder.cross", "ffn")
SPLITS = ("gates", "fedsa", "ffa", "all-shared", "all-private")
DEFAULT_TASK = "speech"
NO_OP = "no-op"  # a task of fl.tasks.table that trains nothing
OWN_MANIFEST = "own"  # as a manifest: that of each deployed device
DEVICE, EDGE = "device", "edge"  # where the devices' updates are put together
SERVER_OPTIMIZERS = ("none", "fedavgm", "fedadagrad", "fedyogi", "fedadam")
NONE = "none"
SERVER_NOISE, DISTRIBUTED_NOISE, LOCAL_NOISE = "server", "distributed", "local"  # who adds the noise
PAIRWISE = "pairwise"  # masks of secure sums
LABEL_SWAP = "label-swap"  # an attack on data; the others are attacks on updates
ATTACKS = (NONE, "sign-flip", "scale", LABEL_SWAP, "random", "collusion")
OWN, LATIN = "own", "latin"  # tokens of the base itself, and without Korean
TOKENS = (OWN, LATIN, "syllables", "all-syllables", "jamo", "compat-jamo")  # the forms are those of fl.speech.hangul
LAYERS_PREFIX = "layers:"  # and a regular expression over tensor names
LAST_PREFIX = "last:"  # and a number of layers
MAX_RANK = 1024
