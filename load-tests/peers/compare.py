"""Tidegate beside what PyPI offers, on the same events, one after the other: run by `cargo xtask peers`.

Servers get the events over HTTP: 2,000 a request over 4 connections, from this process. Libraries read them from a file. All of them
write Parquet with zstd on the same core. CPU seconds are user + system time of the process and its children, as the operating system
gives them when it has ended, less what it had used when it was ready: reading, storing, and what it does when it is told to stop.
"""

import argparse
import glob
import http.client
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

CONNECTIONS = 4
EVENTS_PER_REQUEST = 2000
READY_S_MAX = 60
STOP_S_MAX = 120


def cpu_s_of(pid):
    """User + system seconds of a running process, its ended children included."""
    with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def rss_peak_mib_of(pid):
    """The peak of resident memory so far."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8") as file:
            return int(re.search(r"VmHWM:\s+(\d+)", file.read()).group(1)) / 1024
    except (FileNotFoundError, AttributeError):
        return 0.0


def start(command, core, environment, log):
    """A process on one core."""
    return subprocess.Popen(
        command,
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **environment},
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )


def end(process, how, ready_cpu_s):
    """Tells a process to stop and waits: its CPU seconds since it was ready, and its peak of memory."""
    peak = rss_peak_mib_of(process.pid)
    if how is not None:
        process.send_signal(how)
    deadline = time.monotonic() + STOP_S_MAX
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            break
        peak = max(peak, rss_peak_mib_of(process.pid))
        if time.monotonic() > deadline:
            process.kill()
            sys.exit(f"{process.args[0]} did not end within {STOP_S_MAX} s")
        time.sleep(0.02)
    return usage.ru_utime + usage.ru_stime - ready_cpu_s, max(peak, usage.ru_maxrss / 1024)


def free_port():
    """A port that nobody listens on just now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def until_listening(port, process):
    """Waits until the port takes connections."""
    deadline = time.monotonic() + READY_S_MAX
    while time.monotonic() < deadline:
        if process.poll() is not None:
            sys.exit(f"{process.args[0]} ended with {process.returncode} instead of listening")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    sys.exit(f"{process.args[0]} does not listen after {READY_S_MAX} s")


def post_all(bodies, port, path):
    """Sends every body once; what is not answered with 200 ends the run."""
    turn = iter(bodies)
    lock = threading.Lock()
    failed = []

    def send():
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        while not failed:
            with lock:
                body = next(turn, None)
            if body is None:
                return
            try:
                connection.request("POST", path, body, {"content-type": "application/x-ndjson"})
                reply = connection.getresponse()
                text = reply.read()
                if reply.status != 200:
                    failed.append(f"{reply.status} {text[:200]!r}")
            except (OSError, http.client.HTTPException) as error:
                failed.append(repr(error))

    threads = [threading.Thread(target=send) for _ in range(CONNECTIONS)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        sys.exit(f"a request was not taken: {failed[0]}")
    return time.monotonic() - started


def rows_and_bytes(pattern):
    """What lies in Parquet files."""
    import duckdb

    files = glob.glob(pattern, recursive=True)
    if not files:
        return 0, 0
    counted = duckdb.sql(f"SELECT count(*) FROM read_parquet({files!r}, union_by_name = true)").fetchall()
    return counted[0][0], sum(os.path.getsize(file) for file in files)


def row(name, work, events, cpu_s, wall_s, rss_mib, stored):
    """One line of the table. Fewer rows than events would make the figure worthless."""
    rows, size = stored
    if rows != events:
        sys.exit(f"{name}: {rows} rows of {events} events are in its Parquet files")
    return {
        "peer": name,
        "work": work,
        "events_per_cpu_s": round(events / cpu_s),
        "cpu_s": round(cpu_s, 2),
        "wall_s": round(wall_s, 2),
        "rss_peak_mib": round(rss_mib),
        "bytes_per_event": round(size / events, 1),
    }


def tidegate(program, bodies, core, folder, events):
    """This project, acknowledging on disk, no rules."""
    data = os.path.join(folder, "tidegate")
    port = free_port()
    environment = {
        "TIDEGATE_DATA_DIR": data,
        "TIDEGATE_LISTEN": f"127.0.0.1:{port}",
        "TIDEGATE_STARTER_PACK": "false",
    }
    with open(os.path.join(folder, "tidegate.log"), "wb") as log:
        process = start([program, "serve"], core, environment, log)
        until_listening(port, process)
        ready = cpu_s_of(process.pid)
        wall = post_all(bodies, port, "/v2/events/bulk?ack=disk")
        cpu, rss = end(process, signal.SIGTERM, ready)
    stored = rows_and_bytes(os.path.join(data, "store", "security_events", "**", "*.parquet"))
    return row("tidegate", "HTTP → fsynced log → Parquet", events, cpu, wall, rss, stored)


def tenzir(bodies, core, folder, events):
    """Tenzir's pipeline from an HTTP listener to a file. Its answer does not wait for a disk.

    `raw` leaves texts what they are: guessing, it takes some ids for durations, and a file cannot have both.
    """
    out = os.path.join(folder, "tenzir.parquet")
    port = free_port()
    pipeline = f'accept_http "127.0.0.1:{port}" {{ read_ndjson raw=true }}\nto_file "{out}" {{ write_parquet compression_type="zstd" }}'
    with open(os.path.join(folder, "tenzir.log"), "wb") as log:
        process = start([os.path.join(os.path.dirname(sys.executable), "tenzir"), pipeline], core, {}, log)
        until_listening(port, process)
        time.sleep(1)
        ready = cpu_s_of(process.pid)
        wall = post_all(bodies, port, "/")
        cpu, rss = end(process, signal.SIGINT, ready)
    return row(f"tenzir {version('tenzir')}", "HTTP → Parquet, no fsync", events, cpu, wall, rss, rows_and_bytes(out))


LIBRARIES = {
    "duckdb": (
        "import duckdb; duckdb.sql('SET threads = 1')",
        "duckdb.sql(\"COPY (SELECT * FROM read_ndjson_auto('{file}')) TO '{out}' (FORMAT parquet, COMPRESSION zstd)\")",
    ),
    "polars": (
        "import polars",
        "polars.scan_ndjson('{file}').sink_parquet('{out}', compression='zstd')",
    ),
    "chdb-core": (
        "import chdb",
        "chdb.query(\"SELECT * FROM file('{file}', JSONEachRow) INTO OUTFILE '{out}' FORMAT Parquet "
        "SETTINGS max_threads = 1, output_format_parquet_compression_method = 'zstd'\")",
    ),
}


def library(name, file, core, folder, events):
    """A library that reads the file and writes Parquet, in a process of its own."""
    out = os.path.join(folder, f"{name}.parquet")
    load, work = LIBRARIES[name]
    work = work.replace("{file}", file).replace("{out}", out)
    # What loading the library took is written down, and left out.
    loaded = os.path.join(folder, f"{name}.loaded")
    script = f"import time\n{load}\nopen({loaded!r}, 'w').write(str(time.process_time()))\n{work}\n"
    environment = {"POLARS_MAX_THREADS": "1"}
    with open(os.path.join(folder, f"{name}.log"), "wb") as log:
        started = time.monotonic()
        process = start([sys.executable, "-c", script], core, environment, log)
        cpu, rss = end(process, None, 0.0)
        wall = time.monotonic() - started
    if process.returncode != 0:
        with open(os.path.join(folder, f"{name}.log"), encoding="utf-8") as log:
            sys.exit(f"{name} ended with {process.returncode}: {log.read()[-2000:]}")
    with open(loaded, encoding="utf-8") as text:
        cpu -= float(text.read())
    return row(f"{name} {version(name)}", "file → Parquet", events, cpu, wall, rss, rows_and_bytes(out))


def version(package):
    """Of an installed package."""
    import importlib.metadata

    return importlib.metadata.version(package)


def load_average():
    """Of the last minute."""
    return os.getloadavg()[0]


def main():
    """Runs all, prints the table, and keeps it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", required=True, help="the program tidegate")
    parser.add_argument("--events", required=True, help="a file of NDJSON")
    parser.add_argument("--folder", required=True, help="where everything is written")
    parser.add_argument("--runs", type=int, default=3, help="how often each is run; the table has the median")
    parser.add_argument("--json", help="keep the result here")
    asked = parser.parse_args()
    with open(asked.events, "rb") as file:
        lines = file.read().splitlines(keepends=True)
    events = len(lines)
    bodies = [b"".join(lines[at : at + EVENTS_PER_REQUEST]) for at in range(0, events, EVENTS_PER_REQUEST)]
    bytes_per_event = sum(map(len, lines)) / events
    del lines
    cores = sorted(os.sched_getaffinity(0))
    core = cores[0]
    os.sched_setaffinity(0, set(cores[1:]) or {core})
    runs = {
        "tidegate": lambda folder: tidegate(asked.server, bodies, core, folder, events),
        "tenzir": lambda folder: tenzir(bodies, core, folder, events),
        **{name: lambda folder, name=name: library(name, asked.events, core, folder, events) for name in LIBRARIES},
    }
    before = load_average()
    found = {name: [] for name in runs}
    # Interleaved, so that a busy minute of the machine is everybody's.
    for _ in range(asked.runs):
        for name, run in runs.items():
            folder = tempfile.mkdtemp(prefix=f"{name}-", dir=asked.folder)
            found[name].append(run(folder))
            shutil.rmtree(folder)
            print(f"{name}: {found[name][-1]['events_per_cpu_s']:,} events per CPU second", file=sys.stderr)
    table = []
    for results in found.values():
        results.sort(key=lambda result: result["events_per_cpu_s"])
        middle = dict(results[len(results) // 2])
        middle["events_per_cpu_s_of_all_runs"] = [result["events_per_cpu_s"] for result in results]
        table.append(middle)
    ours, theirs = table[0]["events_per_cpu_s"], table[1]["events_per_cpu_s"]
    result = {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "events": events,
        "bytes_of_an_event": round(bytes_per_event, 1),
        "events_per_request": EVENTS_PER_REQUEST,
        "connections": CONNECTIONS,
        "cores": 1,
        "load_average_before": before,
        "load_average_after": load_average(),
        "runs": asked.runs,
        "peers": table,
        "times_the_best_server": round(ours / theirs, 2),
    }
    print("| | work | events per CPU second | of all runs | wall s | RSS peak, MiB | bytes an event |")
    print("|---|---|---|---|---|---|---|")
    for line in table:
        every = ", ".join(f"{rate:,}" for rate in line["events_per_cpu_s_of_all_runs"])
        print(
            f"| {line['peer']} | {line['work']} | {line['events_per_cpu_s']:,} | {every} | {line['wall_s']} "
            f"| {line['rss_peak_mib']} | {line['bytes_per_event']} |"
        )
    print(f"\ntidegate is at {result['times_the_best_server']} times the best peer that is a server")
    if asked.json:
        with open(asked.json, "w", encoding="utf-8") as file:
            file.write(json.dumps(result, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    main()
