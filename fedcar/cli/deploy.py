"""`fedcar serve, keygen, enroll, join, run, status, resume, doctor`: the real federation on the command line."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedcar.cli.options import (
    FOLDER,
    adapter_option,
    as_json,
    cache_option,
    delta_option,
    encoder_option,
    extra,
    given,
    pooling_option,
    privacy_target,
    prompt_options,
    refuse_both,
    round_settings,
    with_privacy,
    with_settings,
)
from fedcar.cli.output import echo, echo_blamed, print_json
from fedcar.cli.tables import live_table
from fedcar.errors import FedcarError, typed_path

if TYPE_CHECKING:
    from fedcar.federation.deploy.folder import ServerFolder

data_dir = click.option(
    "--data-dir", type=FOLDER, default=Path("server"), show_default=True, help="The server's folder."
)


@click.command()
@data_dir
@click.option("--host", required=True, callback=given, help="The name or address by which devices reach this server.")
@click.option("--port", type=int, default=9443, show_default=True)
@click.option("--bind", help="The address to listen on.  [default: --host]")
@click.option(
    "--collection", type=FOLDER, help="Its documents, and dev questions to choose by, or devices do.  [needed at first]"
)
@encoder_option
@pooling_option
@prompt_options
@click.option("--certificate", type=FOLDER, help="Your own certificate for --host.  [default: one that fedcar makes]")
@click.option("--certificate-key", type=FOLDER, help="Its key.")
@click.option("--certificate-authority", type=FOLDER, help="The authority that signed it.")
@as_json
def serve(
    data_dir: Path,
    host: str,
    port: int,
    bind: str | None,
    collection: Path | None,
    encoder: str | None,
    pooling: str | None,
    query_prompt: str | None,
    document_prompt: str | None,
    certificate: Path | None,
    certificate_key: Path | None,
    certificate_authority: Path | None,
    as_json: bool,
) -> None:
    """Run the server: its own authority, the SuperLink on loopback, and the TLS front that devices see."""
    with extra():
        from fedcar.common.progress import Console
        from fedcar.encoder.model_files import DEFAULT_ENCODER
        from fedcar.federation.deploy import server as deploy
        from fedcar.federation.deploy.folder import ServerFolder

        place = ServerFolder(data_dir)
        before = place.settings() if place.file.exists() else None
        if collection is None and before is None:
            raise FedcarError("--collection: needed when a server starts for the first time; give the folder")
        documents = collection or Path(before.collection)  # type: ignore[union-attr] # one of the two is there
        chosen = encoder or (before.encoder if before else DEFAULT_ENCODER)
        pooling = pooling or (before.pooling if before else None)
        prompts = (
            before.query_prompt if query_prompt is None and before else query_prompt,
            before.document_prompt if document_prompt is None and before else document_prompt,
        )
        settings = deploy.prepare_server(place, host, bind, port, documents, chosen, pooling, prompts)
        given = (certificate, certificate_key, certificate_authority)
        if any(given) and not all(given):
            raise FedcarError(
                "--certificate, --certificate-key and --certificate-authority go together; give all three"
            )
        front = deploy.front_certificate(place, host, given if all(given) else None)  # type: ignore[arg-type] # all are

        def started() -> None:
            if as_json:
                print_json({"host": host, "port": port, "data_dir": str(data_dir), "devices": sorted(place.nodes())})

        deploy.serve(place, settings, front, Console().say, started=started)


@click.command()
@click.option("--node", required=True, help="The device's name.")
@click.option("--out", type=FOLDER, default=Path(), help="Where the key pair is written.  [default: here]")
@as_json
def keygen(node: str, out: Path, as_json: bool) -> None:
    """Make a device's key pair: NODE.key, which never leaves the device, and NODE.pub for the server."""
    with extra():
        from fedcar.federation.deploy.keys import keygen as make

        private, public = make(out, node)
    if as_json:
        print_json({"node": node, "private": str(private), "public": str(public)})
        return
    echo(f"{private}: stays here")
    echo(f"{public}: take it to the server, and there: fedcar enroll {typed_path(public.name)}")


@click.command()
@click.argument("public", type=FOLDER)
@data_dir
@click.option("--address", help="HOST:PORT by which this device reaches the server.  [default: that of fedcar serve]")
@click.option("--out", type=FOLDER, help="The file to write.  [default: beside PUBLIC, ending in .join]")
@as_json
def enroll(public: Path, data_dir: Path, address: str | None, out: Path | None, as_json: bool) -> None:
    """Let the device with the key PUBLIC in, and write the file with which it joins; no secret is in it."""
    with extra():
        from fedcar.federation.deploy.enroll import enroll as let_in
        from fedcar.federation.deploy.folder import ServerFolder

        file = let_in(ServerFolder(data_dir), public, address, out, _register)
    if as_json:
        print_json({"file": str(file)})
        return
    there = f"fedcar join --file {typed_path(file.name)} --collection DIR"
    echo(f"{file}: take it to the device, and there: {there}")


def _register(place: ServerFolder, key: bytes, name: str) -> int:
    from fedcar.federation.deploy.link import register  # heavy, and not needed where the device is known

    return register(place, key, name)


@click.command()
@click.option("--file", "file", type=FOLDER, required=True, help="What fedcar enroll wrote for this device.")
@click.option("--collection", type=FOLDER, required=True, help="The server's documents with this device's questions.")
@click.option("--key", type=FOLDER, help="This device's key.  [default: NODE.key beside the file]")
@click.option("--data-dir", type=FOLDER, help="What this device remembers.  [default: NODE.node beside the file]")
@click.option("--encoder", default=None, help="Where the encoder lies here.  [default: as on the server]")
@cache_option
@click.option("--epsilon", type=float, help="This device's budget over all runs; nothing un-noised leaves it then.")
@delta_option
@click.option("--ledger", type=FOLDER, help="Folder of the ledger of --epsilon.  [default: the collection's own]")
@as_json
def join(
    file: Path,
    collection: Path,
    key: Path | None,
    data_dir: Path | None,
    encoder: str | None,
    cache: Path | None,
    epsilon: float | None,
    delta: float,
    ledger: Path | None,
    as_json: bool,
) -> None:
    """Take part with this device's questions, which never leave it, until it is stopped."""
    with extra():
        from fedcar.common.progress import Console
        from fedcar.federation.deploy import join as deploy_join
        from fedcar.federation.deploy.enroll import JoinFile
        from fedcar.privacy.ledger import Budget

        told = JoinFile.read(file)
        budget = None if epsilon is None else Budget(epsilon, delta)
        key = key or file.with_name(f"{told.node}.key")
        folder = data_dir or file.with_name(f"{told.node}.node")

        def started(questions: int) -> None:
            if as_json:
                print_json({"node": told.node, "server": told.address, "questions": questions})

        options = deploy_join.DeviceOptions(key, collection, folder, encoder, cache, ledger, budget)
        deploy_join.join(told, options, report=Console(), started=started)


@click.command()
@data_dir
@click.option("--method", type=click.Choice(["ridge", "head", "adapter"]), default="head", show_default=True)
@adapter_option
@click.option("--rounds", type=int, help="[default: as many as make the epochs of central training]")
@with_settings
@click.option("--over-selection", default=1.0, show_default=True, help="Ask so many times more devices than needed.")
@click.option("--epsilon", type=float, help="The privacy budget of this run; devices count it in their own ledgers.")
@with_privacy
@click.option("--ledgers", type=FOLDER, help="With --unit client: the server's ledger, kept over runs.  [default: RUN]")
@click.option("--no-privacy", is_flag=True, help="Un-noised on purpose: what devices send gives questions away.")
@cache_option
@click.option("--detach", is_flag=True, help="Go on in the background; fedcar status shows how far.")
@as_json
def run(
    data_dir: Path,
    method: str,
    adapter: str,
    rounds: int | None,
    over_selection: float,
    epsilon: float | None,
    delta: float,
    unit: str,
    public_dev: bool,
    public: Path | None,
    public_because: str | None,
    against_advice: bool,
    adaptive_clip: bool,
    held_out: bool,
    ledgers: Path | None,
    no_privacy: bool,
    cache: Path | None,
    detach: bool,
    as_json: bool,
    **options: Any,  # noqa: ANN401 - the settings of the rounds
) -> None:
    """Train one retriever over the devices that are online."""
    refuse_both(epsilon, no_privacy)
    if epsilon is None and not no_privacy:
        raise FedcarError(
            "run: give --epsilon, the privacy budget, or --no-privacy to send updates un-noised on purpose"
        )
    with extra():
        from dataclasses import asdict, replace

        from fedcar.federation.deploy.folder import ServerFolder
        from fedcar.federation.deploy.options import RunOptions
        from fedcar.federation.deploy.runs import check_serving, new_run, one_run
        from fedcar.federation.job.job import check_method

        if not 1.0 <= over_selection <= 10.0:
            raise FedcarError(f"--over-selection {over_selection:g}: must be from 1 to 10")
        settings = round_settings(rounds, options)
        check_method(method, adapter, settings)
        target = privacy_target(
            epsilon, delta=delta, unit=unit, public_dev=public_dev, public=public, against_advice=against_advice,
            adaptive_clip=adaptive_clip, held_out=held_out, public_because=public_because,
        )  # fmt: skip
        place = ServerFolder(data_dir)
        place.settings()
        run_options = RunOptions(
            method, adapter, asdict(settings), over_selection, str(cache.resolve()) if cache else None
        )
        if target is not None:
            from fedcar.federation.deploy.run_noised import under_epsilon

            run_options = under_epsilon(run_options, target, settings, str(ledgers.resolve()) if ledgers else None)
            run_options = replace(run_options, public=str(public.resolve()) if public else None, public_dev=public_dev)
        with one_run(place):
            check_serving(place)
            folder = new_run(place, run_options)
        _go(place, folder, resume=False, detach=detach, as_json=as_json)


@click.command()
@click.argument("name", metavar="RUN")
@data_dir
@click.option("--detach", is_flag=True, help="Go on in the background.")
@as_json
def resume(name: str, data_dir: Path, detach: bool, as_json: bool) -> None:
    """Go on with RUN from its last finished round."""
    with extra():
        from fedcar.federation.deploy.folder import ServerFolder
        from fedcar.federation.deploy.options import RunOptions

        place = ServerFolder(data_dir)
        place.settings()
        folder = place.runs / Path(name).name
        RunOptions.read(folder)
        _go(place, folder, resume=True, detach=detach, as_json=as_json)


def _go(place: ServerFolder, folder: Path, *, resume: bool, detach: bool, as_json: bool) -> None:
    if detach:
        _detach(place, folder, as_json)
        return
    from fedcar.common.progress import Console
    from fedcar.federation.deploy import run as deploy_run
    from fedcar.federation.deploy.runs import one_run

    report = Console()
    report.say(f"run {folder.name}")
    with one_run(place, folder.name), live_table() as watch:
        go_on = f"fedcar resume {folder.name} --data-dir {typed_path(place.folder)}"
        try:
            result = deploy_run.start(place, folder, resume=resume, report=report, watch=watch)
        except KeyboardInterrupt:
            report.say(f"finished rounds are kept: {go_on} goes on")
            raise
        except Exception as error:
            if deploy_run.is_full(folder, error):
                raise FedcarError(f"{folder}: no space left on the disk; make room, then {go_on}") from error
            if not isinstance(error, FedcarError):
                raise
            says = re.sub(r", or lower the quorum \(\S+\),", "", str(error))  # what a run was started with stays
            raise FedcarError(says.replace("go on with --resume", f"go on with {go_on}")) from error
    if as_json:
        print_json(result)
    else:
        echo(f"{len(result['rounds'])} rounds, {result['bytes_per_round'] / 1000:.0f} kB a round, {noise(result)}")
        echo_blamed(result["rounds"])
        chosen = "" if result["selection"] is None else f", selection {result['selection']:.3f}"
        echo(f"{result['retriever']}: saved{chosen}")
        echo(f'next: fedcar search {typed_path(result["retriever"])} "a question"')
    if result.get("refused"):
        from fedcar.privacy.errors import BudgetError

        raise BudgetError(result["refused"])


def noise(result: dict[str, Any]) -> str:
    claim = result["privacy"]
    return "un-noised" if claim is None else f"epsilon {float(claim['epsilon']):.3g}, see {result['run']}/privacy.json"


def _detach(place: ServerFolder, folder: Path, as_json: bool) -> None:
    import subprocess

    from fedcar.federation.deploy.processes import fedcar_command

    file = folder / "run.log"
    with file.open("ab") as log:
        subprocess.Popen(
            fedcar_command("resume", folder.name, "--data-dir", place.folder),
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    if as_json:
        print_json({"run": str(folder), "log": str(file)})
    else:
        echo(f"{folder.name}: runs in the background ({file}); fedcar status shows how far")


@click.command()
@data_dir
@as_json
def status(data_dir: Path, as_json: bool) -> None:
    """Show the server, its devices and its runs."""
    with extra():
        from fedcar.federation.deploy.folder import ServerFolder
        from fedcar.federation.deploy.runs import status as status_of

        state = status_of(ServerFolder(data_dir), _node_states)
    if as_json:
        print_json(state)
        return
    echo(f"server {state['server']}: {'serving' if state['serving'] else 'not running (fedcar serve)'}")
    for name, presence in state["devices"].items():
        echo(f"device {name}: {presence}")
    for run in state["runs"]:
        progress = "finished" if run["finished"] else "on" if run["on"] else "stopped"
        selection = "" if run["selection"] is None else f", selection {run['selection']:.3f}"
        of = f" of {run['of']}" if run["of"] else ""
        echo(f"{run['run']}: {run['method']}, {run['rounds']}{of} rounds{selection}, {progress}")


def _node_states(place: ServerFolder) -> dict[int, str]:
    from fedcar.federation.deploy.link import node_states  # heavy, and not needed where no server runs

    return node_states(place)


@click.command()
@click.option("--data-dir", type=FOLDER, help="On the server: its folder.")
@click.option("--file", "file", type=FOLDER, help="On a device: what fedcar enroll wrote for it.")
@click.option("--key", type=FOLDER, help="The device's key.  [default: NODE.key beside the file]")
@click.option("--collection", type=FOLDER, help="The device's collection.")
@click.option("--encoder", default=None, help="Where the encoder lies here.")
@as_json
def doctor(
    data_dir: Path | None,
    file: Path | None,
    key: Path | None,
    collection: Path | None,
    encoder: str | None,
    as_json: bool,
) -> None:
    """Check clock, certificates, ports, versions, disk, memory, encoder and collection, and say what to do."""
    if (data_dir is None) == (file is None):
        raise FedcarError("doctor: give --data-dir on the server, or --file on a device")
    with extra():
        from fedcar.federation.deploy import doctor as deploy_doctor

        if data_dir is not None:
            findings = deploy_doctor.server(data_dir)
        else:
            assert file is not None
            findings = deploy_doctor.device(file, key, collection, encoder)
    if as_json:
        print_json(
            {"healthy": all(finding.fine for finding in findings), "checks": [vars(check) for check in findings]}
        )
    else:
        for finding in findings:
            echo(f"{'fine ' if finding.fine else 'WRONG'} {finding.what}: {finding.says}")
    if not all(finding.fine for finding in findings):
        sys.exit(1)


COMMANDS = (serve, keygen, enroll, join, run, status, resume, doctor)
