"""Small trajectories and groups."""

from serve_fakes import choice, trajectory


def answered(reward, text="seven", version=None, **changes):
    """Return a trajectory whose one turn has this text."""
    own = {"policy_version": version} if version is not None else {}
    turn = choice(message={"role": "assistant", "content": text}, **own)
    return trajectory(reward, messages_and_choices=[{"role": "user", "content": "1 + 6 = ?"}, turn], **changes)


def group(*trajectories, **changes):
    return {"trajectories": list(trajectories), **changes}
