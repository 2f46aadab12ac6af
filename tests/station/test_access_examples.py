"""The examples that are copied: they parse, and say what the documentation says they do."""

import configparser
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

FOLDER = Path(__file__).parents[2] / "examples/station"


def test_compose_publishes_the_proxy_alone() -> None:
    told = yaml.safe_load((FOLDER / "compose.yaml").read_text())
    services, networks = told["services"], told["networks"]
    assert [name for name, one in services.items() if "ports" in one] == ["proxy"]
    assert networks["back"]["internal"]
    assert networks["front"]["internal"]
    for name, one in services.items():
        assert not one.get("privileged"), name
        assert "no-new-privileges:true" in one["security_opt"], name
        assert set(one["networks"]) <= set(networks), name
        assert set(one.get("secrets", [])) <= set(told["secrets"]), name
        for key, value in one.get("environment", {}).items():
            assert "PASSWORD" not in key or key.endswith("_FILE"), f"{name}: {key} in the open"
            assert "secret" not in str(value) or str(value).startswith("/run/secrets/")
    assert services["database"]["networks"] == services["broker"]["networks"] == ["back"]
    assert (FOLDER.parents[1] / services["station"]["build"]["dockerfile"]).is_file()
    for volume in services["proxy"]["volumes"][:1] + services["broker"]["volumes"][:1]:
        assert (FOLDER / volume.split(":")[0]).is_file()


def test_the_image_runs_as_nobody_special() -> None:
    lines = (FOLDER / "Dockerfile").read_text().splitlines()
    last = "\n".join(lines[max(n for n, line in enumerate(lines) if line.startswith("FROM")) :])
    order = [last.index(word) for word in ("useradd", "USER inspector", "VOLUME", "HEALTHCHECK")]
    assert order == sorted(order)
    assert "/v1/health" in last
    for line in lines:
        if line.startswith("COPY") and "--from" not in line:
            for source in line.split()[1:-1]:
                assert (FOLDER.parents[1] / source).exists(), source


def test_the_service_is_one(tmp_path: Path) -> None:
    path = FOLDER / "offnominal-station.service"
    parsed = configparser.ConfigParser(strict=False, interpolation=None)
    parsed.optionxform = str  # type: ignore[assignment,method-assign]  # names in systemd's own letters
    parsed.read(path)
    assert parsed["Service"]["User"] == "offnominal"
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze on this system")
    copy = tmp_path / path.name
    copy.write_text(path.read_text().replace("/opt/offnominal/bin/offnominal", "/bin/true"))
    checked = subprocess.run(["systemd-analyze", "verify", copy], capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("caddy") is None, reason="no Caddy on this system")
def test_caddy_takes_its_file() -> None:
    command = ["caddy", "validate", "--adapter", "caddyfile", "--config", FOLDER / "Caddyfile"]
    checked = subprocess.run(command, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr


def test_proxies_replace_what_a_request_claims() -> None:
    caddy, nginx = (FOLDER / "Caddyfile").read_text(), (FOLDER / "nginx.conf").read_text()
    assert "header_up X-Forwarded-For {remote_host}" in caddy
    assert "X-Forwarded-For $remote_addr;" in nginx
    assert "Host $http_host;" in nginx
    assert "proxy_buffering off;" in nginx
    for text in (caddy, nginx):
        assert text.count("{") == text.count("}")
