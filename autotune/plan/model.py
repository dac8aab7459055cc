"""From a study file's ``[model]`` table to the kernels that the model launches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autotune.errors import InputError
from autotune.launch.release import (
    NEWEST_RELEASE,
    check_flag,
    installed_release,
    is_newer,
)
from autotune.launch.shape import KernelShape
from autotune.plan.documents import expanded, is_there
from autotune.plan.lacking import flags_text, lacking_text
from autotune.plan.models import (
    Adapter,
    AdapterError,
    LoraLayer,
    Server,
    UnknownModel,
    language_model_of,
    lora_layers,
    made_otherwise,
    read_adapter,
    read_config,
)
from autotune.plan.models.adapter_tensors import AdaptedLayer, adapted_layers
from autotune.plan.models.asking import asked_adapted, asked_layers, has_vllm
from autotune.plan.models.modules import Split
from autotune.plan.workload import Kernel


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelTable:
    """``[model]``: a model, and the server's flags that decide the sizes of its LoRA layers.

    Attributes:
        config: A ``config.json``, a folder with one, or an id on the Hugging Face hub.
        tensor_parallel: The server's ``--tensor-parallel-size``.
        fully_sharded: Whether the server runs with ``--fully-sharded-loras``.
        expert_parallel: Whether the server runs with ``--enable-expert-parallel``.
        mixed_moe_lora_format: Whether the server runs with ``--enable-mixed-moe-lora-format``.
        moe_shared_loras: Whether the server runs with ``--enable-moe-shared-loras``.
        moe_backend: The server's ``--moe-backend``, or what ``auto`` chooses there: experts in
            MXFP4 are padded by it. None for what the release prefers.
        data_parallel: The server's ``--data-parallel-size``.
        dual_stream: Whether the server runs with ``VLLM_LORA_ENABLE_DUAL_STREAM``.
        specialize_active_lora: Whether the server runs with ``--specialize-active-lora``.
        vllm: The server's release; None for the one that is installed here, or else the newest.
        ask_vllm: Whether the installed vLLM says which layers the model has, and not the table. It
            is asked about a model that the table does not know in any case.
        target_modules: The server's ``--lora-target-modules``; None for every layer that can have
            LoRA.
        adapter: For each of some adapters an ``adapter_config.json``, its folder or its id on the
            hub: only the layers of these adapters are tuned. They give the rank, too, where nothing
            else does.
        is_adapter_flag: Whether a flag gave the adapters, and not a study file.
    """

    config: str
    tensor_parallel: int = 1
    fully_sharded: bool = False
    expert_parallel: bool = False
    mixed_moe_lora_format: bool = False
    moe_shared_loras: bool = False
    moe_backend: str | None = None
    data_parallel: int = 1
    dual_stream: bool = False
    specialize_active_lora: bool = False
    vllm: str | None = None
    ask_vllm: bool = False
    target_modules: tuple[str, ...] | None = None
    adapter: tuple[str, ...] = ()
    is_adapter_flag: bool = False
    #: What is to be said of the adapters and of where the layers come from, once they were read.
    _said: list[str] = field(default_factory=list, init=False, repr=False, compare=False)

    @classmethod
    def of_file(cls, table: Mapping[str, Any], folder: Path) -> ModelTable:
        """Read a study file's table.

        Args:
            table: The table, its values checked.
            folder: The study file's folder, which paths in the table are relative to.

        Raises:
            InputError: The table has no ``config``.
        """
        if "config" not in table:
            raise InputError(
                "has no config: give the path of a config.json, its folder, or an id on the "
                "Hugging Face hub"
            )
        adapters = tuple(_from(folder, each) for each in table.get("adapter", ()))
        return cls(**{**table, "config": _from(folder, table["config"]), "adapter": adapters})

    def missing_value(self, lora: Mapping[str, Any], *, is_flag: bool = False) -> str | None:
        """What the model needs and nothing gives, as a message says it; None if nothing.

        Args:
            lora: The values of ``[lora]``, or of the flags.
            is_flag: Whether the model is that of a flag: then nothing is said of a study file.
        """
        given = {*lora, *(["rank"] if self.adapter else [])}
        lacking = [name for name in ("max_loras", "rank") if name not in given]
        if not lacking:
            return None
        adapter = ", or --adapter, which has a rank" if "rank" in lacking else ""
        if is_flag:
            return (
                f"a model needs {flags_text(lacking)} beside it: give what the server has{adapter}"
            )
        return lacking_text("the model", lacking) + adapter

    def kernels(self, lora: Mapping[str, Any]) -> list[Kernel]:
        """Every kernel of every layer that has LoRA.

        Args:
            lora: The values of ``[lora]``, ``max_loras`` among them; with no ``rank`` the smallest
                that the adapter fits in.

        Raises:
            InputError: vLLM does not serve the model, the adapter and the flags together.
        """
        server, targets = self._server(lora)
        if self.target_modules is not None:
            check_flag("target_modules", self.release)
        return [
            Kernel(
                place=layer.name,
                shape=shape,
                layer=layer.name,
                runs=layer.runs,
                is_sampled=layer.split is Split.LOGITS,
                gathered_from=self.gathered_from(shape),
            )
            for layer in self._layers(server, targets)
            for shape in layer.shapes
        ]

    def adapted(
        self, lora: Mapping[str, Any], config: Mapping[str, Any] | None = None
    ) -> tuple[Server, tuple[AdaptedLayer, ...]]:
        """The server, and every linear layer that its adapters may have.

        Args:
            lora: As for ``kernels``.
            config: Another config of the same architecture; None for the model's own.

        Raises:
            InputError: As ``kernels``.
        """
        server, targets = self._server(lora)
        if not self.ask_vllm:
            try:
                given = read_config(self.config) if config is None else config
                return server, adapted_layers(given, server, targets)
            except UnknownModel:
                if config is not None or not has_vllm():
                    raise
        return server, asked_adapted(self.config, server, targets)

    def _server(
        self, lora: Mapping[str, Any]
    ) -> tuple[Server, Sequence[str] | Sequence[Adapter] | None]:
        """The server's flags, and which layers have LoRA."""
        adapters = [read_adapter(each) for each in self.adapter]
        if adapters and self.target_modules is not None:
            raise InputError(
                f"target_modules and adapter both say which layers have LoRA: got "
                f"{', '.join(self.target_modules)} and {', '.join(self.adapter)}; leave one out"
            )
        self._said[:] = [] if lora.get("rank") else [*_of_patterns(adapters)]
        server = Server(
            **{**lora, "rank": _rank(lora.get("rank"), adapters)},
            tensor_parallel=self.tensor_parallel,
            fully_sharded=self.fully_sharded,
            expert_parallel=self.expert_parallel,
            mixed_moe_lora_format=self.mixed_moe_lora_format,
            moe_shared_loras=self.moe_shared_loras,
            moe_backend=self.moe_backend,
            data_parallel=self.data_parallel,
            dual_stream=self.dual_stream,
            specialize_active_lora=self.specialize_active_lora,
            release=self.release,
        )
        return server, adapters or self.target_modules

    def place_of(self, error: InputError, source: str) -> str:
        """What a message about the model begins with.

        Args:
            error: The message.
            source: The study file or the flag that gives the model.
        """
        if not isinstance(error, AdapterError):
            return source
        return "--adapter" if self.is_adapter_flag else f"{source}: [model] adapter"

    @property
    def release(self) -> str:
        """The server's release."""
        return self.vllm or installed_release()

    def gathered_from(self, shape: KernelShape) -> int:
        """How many servers' batches a kernel gets: experts get those of all that share them."""
        return self.data_parallel if shape.op.is_moe else 1

    def _layers(
        self, server: Server, targets: Sequence[str] | Sequence[Adapter] | None
    ) -> tuple[LoraLayer, ...]:
        """The layers with LoRA: by the table, or by the installed vLLM."""
        if not self.ask_vllm:
            try:
                return lora_layers(read_config(self.config), server, targets)
            except UnknownModel:
                if not has_vllm():
                    raise
        asked = asked_layers(self.config, server, targets)
        if self.vllm not in (None, asked.release):
            raise InputError(
                f"--vllm says another release than the one that is installed here and was asked: "
                f"got {self.vllm} beside {asked.release}; leave --vllm out, or ask where "
                f"{self.vllm} is installed"
            )
        if not self.ask_vllm:
            said = (
                "autotune's table does not know the model: its layers are those that vLLM "
                f"{asked.release}, which is installed here, makes of it."
            )
            self._said.append(said)
        return asked.layers

    def notes(self, kernels: Iterable[Kernel]) -> tuple[str, ...]:
        """What a user must know of these kernels of the model, in a line each."""
        notes = []
        if self.adapter:
            names = " ".join(dict.fromkeys(each.place.rpartition(".")[2] for each in kernels))
            notes.append(
                "vLLM launches kernels for every layer that can have LoRA, whatever its adapters "
                f"hold, unless it is started with --lora-target-modules {names} (0.19 and later): "
                "else leave --adapter out."
            )
        if self.dual_stream and self.fully_sharded:
            notes.append(
                "vLLM turns VLLM_LORA_ENABLE_DUAL_STREAM off with fully-sharded LoRAs: the kernels "
                "are those without it."
            )
        elif self.dual_stream:
            notes.append(
                "With VLLM_LORA_ENABLE_DUAL_STREAM LoRA runs beside the base layer: each kernel is "
                "timed as it is launched then, but alone on the GPU."
            )
        return (*self._said, *notes, *self.release_notes(each.layer for each in kernels))

    def release_notes(self, layers: Iterable[str]) -> tuple[str, ...]:
        """What is not known of these layers in the server's release, in a line each."""
        return (*self._of_older(layers), *self._of_release())

    def _of_older(self, layers: Iterable[str]) -> Iterable[str]:
        """A note on layers that the release makes otherwise than the table has them."""
        if self.ask_vllm:
            return
        try:
            otherwise = made_otherwise(language_model_of(read_config(self.config)), self.release)
        except UnknownModel:
            return
        named = [each for each in dict.fromkeys(layers) if each in otherwise]
        if named:
            yield (
                f"The layers are those of vLLM {NEWEST_RELEASE}: {self.release} makes "
                f"{', '.join(named)} of this model otherwise, or puts no LoRA there. Trace the "
                "server, or ask the vLLM that is installed here with --ask-vllm."
            )

    def _of_release(self) -> list[str]:
        """What is not known of the release."""
        if not is_newer(self.release, NEWEST_RELEASE):
            return []
        said = (
            f"vLLM {self.release} is newer than what autotune knows: its look-ups are taken to be "
            f"those of {NEWEST_RELEASE}."
        )
        return [said]


def _from(folder: Path, path: str) -> str:
    """The path below a folder where there is such a file or folder; otherwise as it stands."""
    there = folder / expanded(path)
    return str(there) if is_there(there) else path


def _of_patterns(adapters: Iterable[Adapter]) -> Iterable[str]:
    """A note on each adapter whose rank is that of some of its layers."""
    for each in adapters:
        if each.rank_field != "r":
            yield (
                f"{each.source}: its rank is {each.rank}, by {each.rank_field}: vLLM 0.33 refuses "
                "the adapter at a smaller --max-lora-rank, whether a layer matches or not."
            )


def _rank(rank: int | None, adapters: Iterable[Adapter]) -> int:
    """The server's rank: the one that is given, or else the smallest that all adapters fit in."""
    adapters = list(adapters)
    if rank is None:
        return max((each.server_rank for each in adapters), default=0)
    for each in adapters:
        if each.rank > rank:
            raise AdapterError(
                f"{each.source}: the adapter's rank is above the server's: "
                f"got {each.rank_field} {each.rank} for {rank}; give --rank {each.server_rank}"
            )
    return rank
