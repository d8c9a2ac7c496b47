"""FedAvg: the average of the updates, weighted by training examples (McMahan et al. 2017, eq. 1)."""

from fl.algorithms.base import About, Algorithm, Capabilities


class FedAvg(Algorithm):
    """The default: cheap, and composes with everything."""

    name = "fedavg"
    about = About("McMahan et al. 2017", "1602.05629")
    can = Capabilities(mean=True, ranks="first")
