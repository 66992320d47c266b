/** A bar for the reward of each trajectory of a group, from the lowest; a click opens the trajectory. */
import { href, segment } from "../../app/router";
import { number } from "../../components/format";

export interface Reward {
  id: string;
  reward: number | null;
}

const SHOWN = 24;

export function Rewards({ rewards, low, high }: { rewards: Reward[]; low: number; high: number }) {
  const sorted = [...rewards].sort((a, b) => (a.reward ?? -Infinity) - (b.reward ?? -Infinity));
  const shown = sorted.slice(0, SHOWN);
  const size = high - low || 1;
  return (
    <span class="rewards">
      <span class="bars" style={{ "--zero": `${(100 * (0 - low)) / size}%` }}>
        {shown.map(({ id, reward }) => (
          <a
            key={id}
            href={href(`/trajectories/${segment(id)}`)}
            tabIndex={-1}
            class={reward === null ? "failed" : reward < 0 ? "below" : ""}
            title={reward === null ? "A rollout that failed" : `Reward ${number(reward)}`}
          >
            {reward === null ? (
              <span class="cross" aria-hidden="true">×</span>
            ) : (
              <span class="bar" style={{ bottom: `${(100 * (Math.min(reward, 0) - low)) / size}%`, height: `max(2px, ${(100 * Math.abs(reward)) / size}%)` }} />
            )}
            <span class="sr-only">{reward === null ? "failed" : number(reward)}</span>
          </a>
        ))}
      </span>
      {sorted.length > SHOWN && <span class="muted">+{sorted.length - SHOWN}</span>}
    </span>
  );
}
