"""What every LLM teacher of the room keeps: options, a description without a network, one role."""

import inspect
import pickle
import socket
from contextlib import AbstractContextManager

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import SecretStr

from alkd_ray import registry
from alkd_ray.errors import InputError
from alkd_ray.llm_teachers import ChatTeacher, Endpoint, RecordedTeacher
from alkd_ray.registry import PluginConfig

NAMES = registry.names("llm_teachers")
# Options with which each can be made, and a field that must make it another endpoint or recording.
OPTIONS = {
    "openai-chat": (
        {"base_url": "http://127.0.0.1:9/v1", "model": "m", "api_key_env": "NO_SUCH_KEY"},
        {"base_url": "http://127.0.0.1:10/v1"},
    ),
    "simulated": ({}, {"seed": 12345}),
    "replay": ({"path": "one.parquet"}, {"path": "two.parquet"}),
}
RANKINGS = {"one.parquet": {7: [3, 1], 2: []}, "two.parquet": {7: [1, 3], 2: []}}


@pytest.fixture(autouse=True)
def _recordings(tmp_path, monkeypatch):
    for name, rankings in RANKINGS.items():
        pq.write_table(
            pa.table(
                {
                    "session_id": pa.array(list(rankings), pa.int32()),
                    "ranking": pa.array(list(rankings.values()), pa.list_(pa.int32())),
                }
            ),
            tmp_path / name,
        )
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def no_network(monkeypatch):
    """Every way to open a connection, or to listen for one, fails."""

    def refuse(*_, **__):
        raise AssertionError("the network was used")

    for name in ("connect", "connect_ex", "bind", "listen"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def built(name, **changes):
    return registry.build("llm_teachers", name, {**OPTIONS[name][0], **changes})


def test_every_teacher_has_options_here():
    assert set(OPTIONS) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_options(name):
    teacher = registry.find("llm_teachers", name)
    config = teacher.Config
    assert issubclass(config, PluginConfig)
    assert len(inspect.getdoc(teacher) or "") > 60
    fields = set(config.model_fields)
    parameters = inspect.signature(teacher).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    assert takes_any or fields == set(parameters)
    assert all(info.description for info in config.model_fields.values())
    with pytest.raises(InputError, match=r"llm\.options\.no_such_field: no such field"):
        registry.options(
            "llm_teachers", name, {**OPTIONS[name][0], "no_such_field": 1}, "llm.options"
        )


@pytest.mark.parametrize("name", NAMES)
def test_no_option_holds_a_key(name):
    config = registry.find("llm_teachers", name).Config
    for field, info in config.model_fields.items():
        assert info.annotation is not SecretStr
        assert "key" not in field or field in ("api_key_env", "api_key_file")


@pytest.mark.parametrize("name", NAMES)
def test_a_teacher_has_one_role(name):
    teacher = built(name)
    assert isinstance(teacher, ChatTeacher) != isinstance(teacher, RecordedTeacher)


CHAT = [name for name in NAMES if hasattr(registry.find("llm_teachers", name), "describe")]
RECORDED = [name for name in NAMES if name not in CHAT]


def test_the_roles():
    assert CHAT == ["openai-chat", "simulated"]
    assert RECORDED == ["replay"]


@pytest.mark.parametrize("name", CHAT)
@pytest.mark.usefixtures("no_network")
def test_describing_needs_no_network(name, monkeypatch):
    for variable in ("OPENAI_API_KEY", "NO_SUCH_KEY"):
        monkeypatch.delenv(variable, raising=False)
    endpoint = built(name).describe()
    assert isinstance(endpoint, Endpoint)
    assert endpoint.identity
    assert endpoint.model
    assert pickle.loads(pickle.dumps(endpoint)) == endpoint  # noqa: TID251 - our own bytes
    # It names the same endpoint in every process, and another one for other options.
    assert built(name).describe() == endpoint
    assert built(name, **OPTIONS[name][1]).describe().identity != endpoint.identity


@pytest.mark.parametrize("name", CHAT)
@pytest.mark.usefixtures("no_network")
def test_an_endpoint_is_entered_not_made(name):
    assert isinstance(built(name).endpoint(), AbstractContextManager)


@pytest.mark.parametrize("name", CHAT)
def test_no_secret_is_in_an_endpoint(name, monkeypatch):
    fields = registry.find("llm_teachers", name).Config.model_fields
    if "api_key_env" not in fields:
        pytest.skip(f"{name} has no key")
    monkeypatch.setenv("CONTRACT_KEY", "sk-very-secret")
    endpoint = built(name, api_key_env="CONTRACT_KEY").describe()
    assert "sk-very-secret" not in repr(endpoint)
    assert b"sk-very-secret" not in pickle.dumps(endpoint)


def test_a_started_endpoint_is_the_described_one_and_ends():
    teacher = built("simulated")
    with teacher.endpoint() as endpoint:
        assert endpoint.identity == teacher.describe().identity
        address = endpoint.base_url.split("/")[2].split(":")
        socket.create_connection((address[0], int(address[1])), timeout=5).close()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection((address[0], int(address[1])), timeout=5).close()


@pytest.mark.parametrize("name", RECORDED)
@pytest.mark.usefixtures("no_network")
def test_a_recording(name):
    teacher = built(name)
    ids = teacher.recorded_ids()
    assert ids.dtype == np.int64
    assert ids.tolist() == [2, 7]
    ranking = teacher.ranking(7)
    assert ranking.dtype == np.int64
    assert ranking.tolist() == [3, 1]
    assert teacher.ranking(2).tolist() == []
    assert teacher.ranking(3) is None
    ranking[:] = 0
    ids[:] = 0  # what is handed out is the caller's
    assert teacher.ranking(7).tolist() == [3, 1]
    assert teacher.recorded_ids().tolist() == [2, 7]
    assert built(name).fingerprint == teacher.fingerprint
    assert built(name, **OPTIONS[name][1]).fingerprint != teacher.fingerprint


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("api_key_env", "sk-proj-geheim"),
        ("base_url", "https://user:geheim@host/v1"),
        ("base_url", "https://host/v1?key=geheim"),
    ],
)
def test_a_key_in_a_config_is_refused_and_not_repeated(option: str, value: str) -> None:
    with pytest.raises(InputError) as refused:
        built("openai-chat", model="m", **{option: value})
    assert option in str(refused.value)
    assert "geheim" not in str(refused.value)


def test_openai_s_key_is_for_openai_alone() -> None:
    keys = {
        address: built("openai-chat", base_url=address, api_key_env=None).describe().api_key_env
        for address in ("https://api.openai.com/v1", "https://openai.com.evil.net/v1")
    }
    assert list(keys.values()) == ["OPENAI_API_KEY", ""]
