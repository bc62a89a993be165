"""Runs the bench: contenders in turn, so that whatever else the machine does meets all of them."""

import json
import os
import signal
import statistics
import subprocess
import sys
import time

from .servers import Failure

# A run is repeated if others have more than this share of the machine, so often, after a pause.
DISTURBED = 0.15
ATTEMPTS = 4
PAUSE = 5


def end_in_order():
    """Makes a signal to stop an exception, so that servers and directories go with this program."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def say(text):
    print(text, file=sys.stderr, flush=True)


def bench(laboratory, arguments, limit):
    """One run, and its result."""
    command = [str(laboratory.bench), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired as error:
        raise Failure(f"{' '.join(arguments)}: not done in {limit} s") from error
    if done.returncode != 0:
        raise Failure(f"{' '.join(arguments)}: {done.stderr.strip()}")
    return json.loads(done.stdout), done.stderr.strip()


def measure(laboratory, case, contender, quick):
    """One run against a server that was started for it."""
    server = getattr(laboratory, contender.start)()
    try:
        shorter = (case.quick or ()) if quick else ()
        command = with_changes(case.command, shorter)
        arguments = [*command, *contender.options, *server.arguments()]
        result, summary = bench(laboratory, arguments, case.limit)
    finally:
        server.stop()
    say(f"  {contender.title}: {summary}")
    return result


def undisturbed(laboratory, case, contender, quick):
    """A run during which nobody else was busy; after some attempts, one that was disturbed. A core
    that is kept awake by others makes short waits cheaper, so that such runs cannot be compared."""
    for _ in range(ATTEMPTS):
        result = measure(laboratory, case, contender, quick)
        if (share := share_of_others(result)) <= DISTURBED:
            break
        say(f"  others had {share:.0%} of the machine meanwhile")
        time.sleep(PAUSE)
    return result


def share_of_others(result):
    """The share of the machine that neither servers nor generator had: the system's own work, Redis,
    and whoever disturbs."""
    if "machine_busy" not in result:
        return 0.0
    known = sum(result["server_cpu_s"]) + result["generator_cpu_s"]
    return result["machine_busy"] - known / result["seconds"] / os.cpu_count()


def disturbed(results):
    """How many runs were, of all."""
    every = [result for case in results.values() for runs in case.values() for result in runs]
    return sum(share_of_others(result) > DISTURBED for result in every if result), len(every)


def with_changes(command, changes):
    """A command with other values for some of its options."""
    changed = list(command)
    for option, value in zip(changes[::2], changes[1::2]):
        if option in changed:
            changed[changed.index(option) + 1] = value
        else:
            changed += [option, value]
    return changed


def all_cases(laboratory, cases, rounds, quick):
    """Results by case and contender, each a list with one of each round. A run that fails is none,
    and its reason is kept."""
    results, failures = {}, []
    for case in cases:
        of_case = results.setdefault(case.name, {contender.name: [] for contender in case.contenders})
        for number in range(min(rounds, case.most_rounds)):
            say(f"{case.name}, round {number + 1}")
            for contender in case.contenders:
                try:
                    result = undisturbed(laboratory, case, contender, quick)
                except Failure as failure:
                    say(f"  {contender.title}: FAILED: {failure}")
                    failures.append(f"{case.name}, {contender.title}: {failure}")
                    result = None
                of_case[contender.name].append(result)
    return results, failures


def values(figure, results):
    return [figure.of(result) for result in results if result is not None]


def ratios(figure, results, references):
    """Each to the one of the same round."""
    pairs = [pair for pair in zip(results, references) if None not in pair]
    return [figure.of(one) / figure.of(other) for one, other in pairs if figure.of(other)]


def middle(numbers):
    return statistics.median(numbers) if numbers else None
