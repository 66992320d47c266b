/** The numbers of one token. */
import { number, percent } from "../../components/format";
import { tokenLabel } from "./tokenText";
import type { TokenStore } from "./tokenStore";

export function TokenNumbers({ store, token }: { store: TokenStore; token: number | null }) {
  if (token === null) {
    return <p class="muted numbers-hint">Point at a token, or select one with a click or the arrow keys, to see its numbers.</p>;
  }
  const columns = store.columns(token);
  const sequence = store.sequenceOf(token);
  if (!columns || !sequence) return <p class="muted">Loading token {token}…</p>;
  const at = token - columns.start;
  const turn = store.turnOf(token);
  const learner = columns.learner_logprobs[at] ?? null;
  const sampled = columns.sampling_logprobs[at] ?? null;
  const isTrained = columns.mask[at] ?? false;
  const logprob = learner ?? sampled;
  const facts: [string, string | null][] = [
    ["Text", tokenLabel(columns.texts[at] ?? "", columns.bytes[at] ?? null)],
    ["Id", String(columns.ids[at])],
    ["Probability", logprob === null ? null : probability(logprob)],
    ["Learner's logprob", known(learner)],
    ["Sampler's logprob", known(sampled)],
    ["Learner − sampler", learner === null || sampled === null ? null : number(learner - sampled)],
    ["Old logprob", columns.old_logprobs ? known(columns.old_logprobs[at] ?? null) : null],
    ["Reference logprob", columns.ref_logprobs ? known(columns.ref_logprobs[at] ?? null) : null],
    ["Ratio", known(columns.ratios[at] ?? null)],
    ["Advantage", isTrained ? known(sequence.advantage) : null],
    ["Weight", isTrained ? known(sequence.weight) : null],
    ["Version", turn?.policy_version === null || turn === null ? null : String(turn.policy_version)],
    ["Turn", turn === null ? "context" : `${turn.index}, token ${token - turn.begin} of ${turn.num_tokens}`],
    ["Gradient step", isTrained && sequence.gradient_step !== null ? String(sequence.gradient_step) : null],
    ["Position", `${token - sequence.begin} of ${sequence.num_tokens}`],
  ];
  return (
    <div class="token-numbers" aria-live="polite">
      <h3>Token {token} {!isTrained && <span class="muted">not trained</span>}</h3>
      <dl class="facts">
        {facts.map(([name, value]) => value !== null && (
          <>
            <dt key={name}>{name}</dt>
            <dd key={`${name} value`} class={name === "Text" ? "mono" : undefined}><bdi>{value}</bdi></dd>
          </>
        ))}
      </dl>
    </div>
  );
}

function known(value: number | null): string | null {
  return value === null ? null : number(value);
}

function probability(logprob: number): string {
  const value = Math.exp(logprob);
  return value < 0.001 ? number(value, 3) : percent(value);
}
