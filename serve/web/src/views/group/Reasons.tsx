/** Why the worst trajectory of a group is worse than the best: rewards, metrics, and the turn at which they part. */
import { count, number } from "../../components/format";
import { Text } from "../../components/Text";
import type { ShownTurn } from "../trajectory/turns";
import type { GroupStatistics } from "../trajectory/types";
import type { Member } from "./Group";

interface Difference {
  name: string;
  best: string;
  worst: string;
}

export function Reasons({ members, statistics, common }: { members: Member[]; statistics: GroupStatistics | null; common: number }) {
  const rewarded = members.filter((one) => one.summary.reward !== null);
  const best = rewarded[0];
  const worst = rewarded[rewarded.length - 1];
  if (!best || !worst || best === worst) return null;
  if (best.summary.reward === worst.summary.reward) {
    return <p class="note">All shown trajectories have the reward {number(best.summary.reward)}: nothing tells them apart, so nothing is learned from them.</p>;
  }
  const differences = differencesOf(best, worst);
  const rows: Difference[] = [
    { name: "Reward", best: number(best.summary.reward), worst: number(worst.summary.reward) },
    { name: "Advantage", best: number(best.advantage), worst: number(worst.advantage) },
    ...differences,
  ];
  const [good, bad] = [best.turns?.[common], worst.turns?.[common]];
  return (
    <section class="card reasons" aria-label="Best and worst">
      <h2>What tells trajectory {worst.summary.index} (worst) from {best.summary.index} (best)</h2>
      <table>
        <thead>
          <tr><th scope="col" /><th scope="col">Best</th><th scope="col">Worst</th></tr>
        </thead>
        <tbody>
          {rows.map((row) => (
            <tr key={row.name}><th scope="row"><Text value={row.name} max={60} /></th><td><Text value={row.best} max={120} /></td><td><Text value={row.worst} max={120} /></td></tr>
          ))}
          {best.turns && worst.turns && (
            <tr><th scope="row">Turn {common}</th><td>{said(good)}</td><td>{said(bad)}</td></tr>
          )}
        </tbody>
      </table>
      {statistics && statistics.size > 2 && statistics.reward_mean !== null && worst.summary.reward !== null && (
        <p class="muted">
          The worst is {number(statistics.reward_mean - worst.summary.reward, 3)} below the mean of {count(statistics.size)} trajectories.
        </p>
      )}
    </section>
  );
}

function said(turn: ShownTurn | undefined) {
  if (!turn) return <span class="muted">has ended</span>;
  const calls = turn.calls.map((call) => `${call.name}(${call.arguments})`).join(" ");
  return <Text value={`${turn.role}: ${turn.text} ${calls}`.trim()} max={160} />;
}

function differencesOf(best: Member, worst: Member): Difference[] {
  const [one, other] = [best.summary, worst.summary];
  const found: Difference[] = [];
  const compare = (name: string, a: string | undefined, b: string | undefined): void => {
    if (a !== b) found.push({ name, best: a ?? "–", worst: b ?? "–" });
  };
  compare("Turns", count(one.num_turns), count(other.num_turns));
  compare("Tool calls", count(one.num_tool_calls), count(other.num_tool_calls));
  compare("Sampled tokens", count(one.num_tokens), count(other.num_tokens));
  compare("Sampled by version", String(one.first_version ?? "?"), String(other.first_version ?? "?"));
  compare("Error", one.error ?? "none", other.error ?? "none");
  for (const name of new Set([...Object.keys(one.metrics), ...Object.keys(other.metrics)])) {
    const [a, b] = [one.metrics[name], other.metrics[name]];
    compare(name, a === undefined ? undefined : number(a), b === undefined ? undefined : number(b));
  }
  for (const name of new Set([...Object.keys(one.metadata), ...Object.keys(other.metadata)])) compare(name, one.metadata[name], other.metadata[name]);
  return found.slice(0, 20);
}
