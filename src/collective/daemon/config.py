"""Settings: the plan's JSON files and environment variables, read here and nowhere else.

A home holds `config.json` in the coordinator's form; `--config FILE` names another, or a node's. Variables override
the file, options of the command line override both. Unknown keys are errors with a suggestion. Keys whose behaviour
is not built yet are parsed, validated and warned about (`unbuilt_keys`).
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from collective.core.address import parse_address, validate_domain
from collective.core.errors import CollectiveError, Misconfigured
from collective.core.sizes import parse_duration, parse_size

__all__ = [
    "CoordinatorConfig",
    "DataStoreConfig",
    "EndpointConfig",
    "NodeConfig",
    "default_home",
    "load_coordinator_config",
    "load_node_config",
    "save_config",
    "unbuilt_keys",
]


def _parsed_by(parse: Callable[[str], object]) -> BeforeValidator:
    """Parse a text, "" left as it is; our errors become the ones that pydantic collects."""

    def validate(value: object) -> object:
        if not isinstance(value, str) or not value:
            return value
        try:
            return parse(value)
        except CollectiveError as error:
            raise ValueError(error.message) from error

    return BeforeValidator(validate)


_Model = TypeVar("_Model", bound=BaseModel)
SizeBytes = Annotated[int, _parsed_by(parse_size), Field(ge=0)]
Seconds = Annotated[float, _parsed_by(parse_duration), Field(gt=0)]
Domain = Annotated[str, _parsed_by(validate_domain)]
ComponentAddress = Annotated[str, _parsed_by(lambda text: str(parse_address(text)))]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FederationSection(_Section):
    """`domain` of the federation, `member_domain` of this home, where the root certificate lies, who is trusted.

    `federation_only`: addresses of the old form (`alice`) are refused at the command line too.
    """

    domain: Domain = ""
    member_domain: Domain = ""
    root_ca: str = ""
    enable_gossip: bool = True
    gossip_interval: Seconds = 30.0
    trusted_domains: tuple[Domain, ...] = ()
    federation_only: bool = False


class DataStoreConfig(_Section):
    """A DataStore that is made when it is missing; afterwards only commands change it."""

    path: str
    owner: str = ""
    strategy: Literal["media", "backup", "hybrid", ""] = ""
    replicas: Annotated[int, Field(ge=0, le=16)] = 0
    cache_popular: bool = False
    cross_member: bool = False
    permissions: tuple[dict[str, Any], ...] = ()


class EndpointConfig(_Section):
    """`type` lan, direct or vpn; `address` HOST:PORT of the gRPC port; `lane` the bytes' port (default: next port)."""

    type: Literal["lan", "direct", "vpn"]
    address: str
    lane: str = ""


class NetworkSection(_Section):
    """How others reach this home, and how paths are chosen.

    `mdns`: tell the own network of this home and look for members there; null: unless it listens on loopback alone.
    """

    endpoints: tuple[EndpointConfig, ...] = ()
    mdns: bool | None = None
    prefer_local: bool = True
    fallback_enabled: bool = True


class CoordinatorSection(_Section):
    """The coordinator's own address, whom it asks first, what it pledges, where it listens."""

    address: ComponentAddress = ""
    bootstrap_peers: tuple[ComponentAddress, ...] = ()
    storage_capacity: SizeBytes = 0
    storage_path: str = ""
    listen: str = "127.0.0.1:8001"
    lane: str = ""
    snapshot_entries: int = Field(default=10_000, ge=10)  # a DataStore's feed is folded after so many


class CoordinatorConfig(_Section):
    """The plan's coordinator file."""

    federation: FederationSection = FederationSection()
    datastores: tuple[DataStoreConfig, ...] = ()
    network: NetworkSection = NetworkSection()
    coordinator: CoordinatorSection = CoordinatorSection()


class NodeSection(_Section):
    """A storage node: who it is, whose it is, where its bytes lie."""

    address: ComponentAddress = ""
    coordinator: ComponentAddress = ""
    storage_capacity: SizeBytes = 0
    storage_path: str = ""
    labels: dict[str, str] = Field(default_factory=dict)
    coordinator_endpoint: str = ""
    lane: str = ""


class PerformanceSection(_Section):
    """Bounds on what a node does at once."""

    parallel_uploads: Annotated[int, Field(ge=1, le=256)] = 10
    parallel_downloads: Annotated[int, Field(ge=1, le=256)] = 20
    chunk_cache_size: SizeBytes = 0
    enable_compression: bool = False


class NodeConfig(_Section):
    """The plan's node file."""

    node: NodeSection = NodeSection()
    performance: PerformanceSection = PerformanceSection()


# Parsed and validated, but nothing acts on them yet: their behaviour comes with later work.
_UNBUILT: Mapping[str, str] = {
    "datastores.cache_popular": "popularity copies are not built yet",
    "datastores.cross_member": "copies already go to other members; diversity rules are not built yet",
    "datastores.permissions": "grants are given with `datastore grant`",
    "network.prefer_local": "endpoints are tried in the order lan, direct, vpn",
    "network.fallback_enabled": "the next endpoint is always tried",
    "performance.parallel_uploads": "the number of transfers at once is fixed for now",
    "performance.parallel_downloads": "the number of transfers at once is fixed for now",
    "performance.chunk_cache_size": "nodes rely on the page cache for now",
    "performance.enable_compression": "compression is not built yet",
}

_COORDINATOR_VARIABLES: Mapping[str, tuple[str, ...]] = {
    "FEDERATION_DOMAIN": ("federation", "domain"),
    "MEMBER_DOMAIN": ("federation", "member_domain"),
    "GOSSIP_ENABLED": ("federation", "enable_gossip"),
    "MDNS_ENABLED": ("network", "mdns"),
    "STORAGE_CAPACITY": ("coordinator", "storage_capacity"),
    "STORAGE_PATH": ("coordinator", "storage_path"),
}
_NODE_VARIABLES: Mapping[str, tuple[str, ...]] = {
    "NODE_ADDRESS": ("node", "address"),
    "STORAGE_PATH": ("node", "storage_path"),
    "STORAGE_CAPACITY": ("node", "storage_capacity"),
    "CACHE_SIZE": ("performance", "chunk_cache_size"),
}


def default_home(environment: Mapping[str, str] = os.environ) -> Path:
    """Where a component keeps everything when no `--home` is given."""
    if named := environment.get("COLLECTIVE_HOME"):
        return Path(named)
    if os.geteuid() == 0:
        return Path("/var/lib/collective")
    data_home = environment.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(data_home) / "collective"


def load_coordinator_config(path: Path, environment: Mapping[str, str] = os.environ) -> CoordinatorConfig:
    """The coordinator's settings: file (may be missing), then variables. Raises: Misconfigured."""
    document = _read_document(path)
    _overlay(document, environment, _COORDINATOR_VARIABLES)
    if endpoints := environment.get("NETWORK_ENDPOINTS"):
        document.setdefault("network", {})["endpoints"] = [_endpoint_of(text) for text in endpoints.split(",")]
    stores = [*document.get("datastores", ())]
    for variable, strategy in (("DATASTORE_MEDIA", "media"), ("DATASTORE_BACKUP", "backup")):
        if store_path := environment.get(variable):
            stores.append({"path": store_path, "strategy": strategy})
    if stores:
        document["datastores"] = stores
    return _validated(CoordinatorConfig, document, path)


def load_node_config(path: Path | None, environment: Mapping[str, str] = os.environ) -> NodeConfig:
    """A node's settings: file (optional), then variables. Raises: Misconfigured."""
    document = _read_document(path) if path is not None else {}
    _overlay(document, environment, _NODE_VARIABLES)
    return _validated(NodeConfig, document, path or Path("the environment"))


def save_config(path: Path, config: CoordinatorConfig) -> None:
    """Write the settings that differ from the defaults, whole or not at all."""
    text = json.dumps(config.model_dump(exclude_defaults=True, mode="json"), indent=2) + "\n"
    temporary = path.with_suffix(".new")
    temporary.write_text(text)
    temporary.replace(path)


def unbuilt_keys(config: CoordinatorConfig | NodeConfig) -> list[str]:
    """A warning per key that was set and does nothing yet."""
    return [f"{key} is accepted but has no effect: {_UNBUILT[key]}" for key in _keys_set(config) if key in _UNBUILT]


def _keys_set(config: BaseModel, prefix: str = "") -> Iterator[str]:
    for name in sorted(config.model_fields_set):
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            yield from _keys_set(value, f"{prefix}{name}.")
        elif isinstance(value, tuple) and value and isinstance(value[0], BaseModel):
            yield from sorted({key for item in value for key in _keys_set(item, f"{prefix}{name}.")})
        else:
            yield prefix + name


def _read_document(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise Misconfigured(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise Misconfigured(f"{path} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise Misconfigured(f"{path} must hold a JSON object")
    return document


def _overlay(
    document: dict[str, Any], environment: Mapping[str, str], variables: Mapping[str, tuple[str, ...]]
) -> None:
    for variable, (section, key) in variables.items():
        if value := environment.get(variable):
            document.setdefault(section, {})[key] = value


def _endpoint_of(text: str) -> dict[str, str]:
    kind, separator, address = text.strip().partition(":")
    if not separator:
        raise Misconfigured(f"NETWORK_ENDPOINTS: {text!r} is not TYPE:HOST:PORT", "for example direct:host:8001")
    return {"type": kind, "address": address}


def _validated(model: type[_Model], document: dict[str, Any], path: Path) -> _Model:
    try:
        return model.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        hint = ""
        if first["type"] == "extra_forbidden":
            known = difflib.get_close_matches(str(first["loc"][-1]), sorted(_all_keys(model)), n=1)
            hint = f"did you mean {known[0]!r}?" if known else "remove it"
            raise Misconfigured(f"{path}: unknown key {where!r}", hint) from error
        raise Misconfigured(f"{path}: {where}: {first['msg']}") from error


def _all_keys(model: type[BaseModel]) -> set[str]:
    keys: set[str] = set()
    for name, field in model.model_fields.items():
        keys.add(name)
        for part in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(part, type) and issubclass(part, BaseModel):
                keys |= _all_keys(part)
    return keys
