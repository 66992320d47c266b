/** The most extreme tokens of a trajectory, each a jump to its place. */
import { useState } from "preact/hooks";
import { number } from "../../components/format";
import { tokenLabel } from "./tokenText";
import type { Notable, TrajectoryTokens } from "./types";

const FEW = 8;

export function NotableTokens({ whole, onJump, selected }: { whole: TrajectoryTokens; onJump: (token: number) => void; selected: number | null }) {
  const { mismatch, improbable, ratio } = whole.notable;
  return (
    <div class="notable">
      <List title="Largest mismatches" about="learner − sampler" tokens={mismatch} onJump={onJump} selected={selected} />
      <List title="Lowest probability" about="logprob" tokens={improbable} onJump={onJump} selected={selected} />
      <List title="Largest ratios" about="ratio" tokens={ratio} onJump={onJump} selected={selected} />
    </div>
  );
}

function List(props: { title: string; about: string; tokens: Notable[]; onJump: (token: number) => void; selected: number | null }) {
  const [all, setAll] = useState(false);
  if (props.tokens.length === 0) return null;
  const shown = all ? props.tokens : props.tokens.slice(0, FEW);
  return (
    <section aria-label={props.title}>
      <h3>{props.title} <span class="muted">{props.about}</span></h3>
      <ol class="plain">
        {shown.map((one) => (
          <li key={one.token}>
            <button type="button" class="quiet" aria-pressed={one.token === props.selected} onClick={() => props.onJump(one.token)}>
              <code><bdi>{tokenLabel(one.text.slice(0, 24), one.bytes)}</bdi></code>
              <span class="muted">#{one.token}</span>
              <span class="value">{number(one.value, 3)}</span>
            </button>
          </li>
        ))}
      </ol>
      {!all && props.tokens.length > FEW && <button type="button" class="quiet" onClick={() => setAll(true)}>Show {props.tokens.length}</button>}
    </section>
  );
}
