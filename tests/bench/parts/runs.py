"""Runs the bench: contenders in turn, so that whatever else the machine does meets all of them."""

import json
import statistics
import subprocess
import sys

from .servers import Failure


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
        shorter = case.quick if quick else ()
        command = with_changes(case.command, shorter)
        arguments = [*command, *contender.options, *server.arguments()]
        result, summary = bench(laboratory, arguments, case.limit)
    finally:
        server.stop()
    say(f"  {contender.title}: {summary}")
    return result


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
                    result = measure(laboratory, case, contender, quick)
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
