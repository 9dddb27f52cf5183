"""The plan's configuration files and variables are read word for word."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from collective.core.errors import Misconfigured
from collective.daemon.config import (
    default_home,
    load_coordinator_config,
    load_node_config,
    save_config,
    unbuilt_keys,
)

COORDINATOR = """
{
  "federation": {
    "domain": "media.collective",
    "member_domain": "alice.media.collective",
    "root_ca": "/collective/certs/federation/root-ca.crt",
    "enable_gossip": true,
    "gossip_interval": "30s",
    "trusted_domains": ["bob.media.collective", "carol.media.collective"]
  },
  "datastores": [
    {"path": "/media/movies", "strategy": "media", "replicas": 2, "cache_popular": true},
    {"path": "/media/shows", "strategy": "media", "replicas": 2, "cache_popular": true},
    {"path": "/backups/photos", "strategy": "backup", "replicas": 3, "cross_member": true}
  ],
  "network": {
    "endpoints": [
      {"type": "direct", "address": "alice.example.com:8001"},
      {"type": "vpn", "address": "10.0.0.1:8001"},
      {"type": "lan", "address": "192.168.1.100:8001"}
    ],
    "prefer_local": true,
    "fallback_enabled": true
  },
  "coordinator": {
    "address": "coord@alice.media.collective",
    "bootstrap_peers": ["coord@bob.media.collective", "coord@carol.media.collective"],
    "storage_capacity": "25TB"
  }
}
"""
NODE = """
{
  "node": {
    "address": "node-01@alice.media.collective",
    "coordinator": "coord@alice.media.collective",
    "storage_capacity": "20TB",
    "storage_path": "/mnt/storage",
    "labels": {"type": "spinning_disk", "bandwidth": "10gbps", "location": "homelab-rack-1"}
  },
  "performance": {
    "parallel_uploads": 10,
    "parallel_downloads": 20,
    "chunk_cache_size": "10GB",
    "enable_compression": false
  }
}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.json"


def test_the_plans_coordinator_file(file: Path) -> None:
    """Every key is understood; those without an effect yet are named."""
    file.write_text(COORDINATOR)
    config = load_coordinator_config(file, {})
    assert config.federation.member_domain == "alice.media.collective"
    assert config.federation.gossip_interval == 30.0
    assert config.coordinator.storage_capacity == 25 * 10**12
    assert [store.path for store in config.datastores] == ["/media/movies", "/media/shows", "/backups/photos"]
    assert [end.type for end in config.network.endpoints] == ["direct", "vpn", "lan"]
    assert not any("gossip" in warning for warning in unbuilt_keys(config))
    assert any("cache_popular" in warning for warning in unbuilt_keys(config))


def test_the_plans_node_file(file: Path) -> None:
    """Sizes and labels come out as meant."""
    file.write_text(NODE)
    config = load_node_config(file, {})
    assert config.node.storage_capacity == 20 * 10**12
    assert config.node.labels["type"] == "spinning_disk"
    assert config.performance.chunk_cache_size == 10 * 10**9


def test_the_plans_variables(file: Path) -> None:
    """Variables override the file; DATASTORE_* add DataStores; NETWORK_ENDPOINTS is a list."""
    file.write_text(COORDINATOR)
    variables = {
        "FEDERATION_DOMAIN": "other.collective",
        "MEMBER_DOMAIN": "dave.other.collective",
        "STORAGE_CAPACITY": "30TB",
        "DATASTORE_MEDIA": "/media",
        "DATASTORE_BACKUP": "/backups",
        "GOSSIP_ENABLED": "true",
        "MDNS_ENABLED": "false",
        "NETWORK_ENDPOINTS": "direct:alice.example.com:8001,vpn:10.0.0.1:8001",
    }
    config = load_coordinator_config(file, variables)
    assert config.federation.domain == "other.collective"
    assert config.coordinator.storage_capacity == 30 * 10**12
    assert config.network.mdns is False
    assert load_coordinator_config(file, {}).network.mdns is None, "left to where the home listens"
    assert {store.path: store.strategy for store in config.datastores}["/backups"] == "backup"
    assert [end.address for end in config.network.endpoints] == ["alice.example.com:8001", "10.0.0.1:8001"]
    node = load_node_config(
        None,
        {"NODE_ADDRESS": "node-07@alice.media.collective", "STORAGE_PATH": "/mnt/d", "STORAGE_CAPACITY": "1TB"},
    )
    assert (node.node.address, node.node.storage_path) == ("node-07@alice.media.collective", "/mnt/d")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not JSON"),
        ("[]", "JSON object"),
        ('{"federation": {"domian": "a.b"}}', "domian"),
        ('{"coordinator": {"storage_capacity": "many"}}', "many"),
        ('{"federation": {"domain": "nodots"}}', "dot"),
        ('{"network": {"endpoints": [{"type": "carrier-pigeon", "address": "x:1"}]}}', "network.endpoints"),
        ('{"datastores": [{"path": "/a", "replicas": -1}]}', "replicas"),
    ],
)
def test_a_broken_file_is_refused_in_words(file: Path, text: str, words: str) -> None:
    """What is wrong is named."""
    file.write_text(text)
    with pytest.raises(Misconfigured) as caught:
        load_coordinator_config(file, {})
    assert words in str(caught.value)


def test_a_misspelt_key_gets_a_suggestion(file: Path) -> None:
    """The nearest key is offered."""
    file.write_text('{"coordinator": {"storage_capasity": "1TB"}}')
    with pytest.raises(Misconfigured) as caught:
        load_coordinator_config(file, {})
    assert "storage_capacity" in caught.value.hint


def test_saving_keeps_what_was_set(file: Path) -> None:
    """Written and read again it is the same."""
    file.write_text(COORDINATOR)
    config = load_coordinator_config(file, {})
    save_config(file, config)
    assert load_coordinator_config(file, {}) == config
    assert json.loads(file.read_text())["federation"]["domain"] == "media.collective"


def test_the_default_home_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """COLLECTIVE_HOME, else root's folder, else the XDG data folder."""
    assert default_home({"COLLECTIVE_HOME": "/srv/c"}) == Path("/srv/c")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert default_home({}) == Path("/var/lib/collective")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert default_home({"XDG_DATA_HOME": "/home/u/data"}) == Path("/home/u/data/collective")
