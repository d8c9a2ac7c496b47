"""``python -m sim.study.enrol``: the study where neither Flower nor Ray is installed."""

from sim.cli.help import new_app
from sim.cli.options import set_up_process
from sim.study.enrol.command import enrol

app = new_app()
app.command()(enrol)

if __name__ == "__main__":
    set_up_process()
    app()
