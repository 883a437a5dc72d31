"""All clients, in the order of the table."""

from clients.bed import Client
from clients.deepctr import DeepCtr
from clients.huggingface import HuggingFace
from clients.lightning_trainer import Lightning
from clients.rechub import Rechub
from clients.torchrec_pipeline import TorchRec

CLIENTS: list[Client] = [
    DeepCtr("MMOE"),
    Rechub(),
    Lightning(1, automatic=True),
    Lightning(1, automatic=False),
    Lightning(2, automatic=False),
    HuggingFace(),
    TorchRec("keyed"),
    TorchRec("combined"),
    TorchRec("in backward"),
]
