"""Models that people have, from the libraries that they have them from, in one call of `rg.trace`.

`python -m benchmarks.clients` goes through `CLIENTS`, each in a process of its own:

    client.py     what a client is: a tiny model to run, a full-size one to plan, how its library saves memory
    timm.py ...   the clients, one file a library; nothing of a library is imported before a model is made
    trial.py      what is asked of each: gradients, ten steps of training, bytes and FLOPs, time to plan
    weighing.py   the bytes and FLOPs of one training step of any module
    page.py       the table, docs/clients.md
"""

from benchmarks.clients import diffusers, freia, hugging_face, monai, nflows, pyg, timm
from benchmarks.clients.client import Client, Example

CLIENTS = (
    *timm.CLIENTS,
    *hugging_face.CLIENTS,
    *diffusers.CLIENTS,
    *monai.CLIENTS,
    *pyg.CLIENTS,
    *freia.CLIENTS,
    *nflows.CLIENTS,
)

__all__ = ["CLIENTS", "Client", "Example"]
