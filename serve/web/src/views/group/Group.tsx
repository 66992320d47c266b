/** The trajectories of a group side by side, the best reward first: what they share, and where they differ. */
import { useEffect, useMemo, useState } from "preact/hooks";
import { get, type Page } from "../../app/api";
import { useGet, usePages, useResource, type Resource } from "../../app/resource";
import { href, segment, type ViewProps } from "../../app/router";
import { Badge } from "../../components/Badge";
import { Empty } from "../../components/Empty";
import { ErrorBox } from "../../components/ErrorBox";
import { Loading } from "../../components/Loading";
import { count, number } from "../../components/format";
import { Text } from "../../components/Text";
import { Conversation, TurnBox } from "../trajectory/Conversation";
import { commonTurns, turnsOf, type ShownTurn } from "../trajectory/turns";
import type { GroupStatistics, Summary, TrajectoryTokens, Whole } from "../trajectory/types";
import { Reasons } from "./Reasons";

const AT_ONCE = 4;

export interface Member {
  summary: Summary;
  turns: ShownTurn[] | null;
  advantage: number | null;
  /** Why it wasn't trained, as a sentence. */
  reason: string | null;
}

export function Group({ params }: ViewProps) {
  const job = params["id"] ?? "";
  const group = params["group"] ?? "0";
  const members = usePages<Summary>("v1/preview/trajectories", { job, group, sort: "reward", order: "desc" }, 16);
  const about = useGroup(job, group);
  const [shown, setShown] = useState(AT_ONCE);
  const lowest = useGet<Page<Summary>>("v1/preview/trajectories", { job, group, sort: "reward", order: "asc", limit: 1 });
  const first = members.items.slice(0, shown);
  // The worst is always shown, after the best: the two say why.
  const worst = lowest.data?.data[0] ?? null;
  const asked = worst && first.length > 0 && !first.some((one) => one.id === worst.id) ? [...first, worst] : first;
  const loaded = useMembers(asked);
  const common = useMemo(() => commonTurns(loaded.map((one) => one.turns).filter((turns) => turns !== null)), [loaded]);
  const left = members.items.length - first.length - (asked.length > first.length && members.items.some((one) => one.id === worst?.id) ? 1 : 0);
  return (
    <div class="group-view">
      <h1>Group {group} <span class="muted">side by side</span></h1>
      <nav class="row" aria-label="Around this group">
        {Number(group) > 0 && <a class="button" href={href(`/jobs/${segment(job)}/groups/${Number(group) - 1}`)}>‹ Previous</a>}
        <a class="button" href={href(`/jobs/${segment(job)}/groups/${Number(group) + 1}`)}>Next ›</a>
        <a href={href(`/jobs/${segment(job)}`)}>Job</a>
        {members.items[0] && <a href={href(`/models/${segment(members.items[0].model_id)}`)}>Model</a>}
      </nav>
      {members.error && <ErrorBox error={members.error} onRetry={members.reload} />}
      {!members.loading && !members.error && members.items.length === 0 && (
        <Empty title={`The job has no group ${group}, or its trajectories aren't indexed yet`}>
          <a href={href(`/jobs/${segment(job)}`)}>The job</a> says how many it has. Reload in a moment if it is new.
        </Empty>
      )}
      <Statistics of={about} />
      {members.items.length > 0 && <Reasons members={loaded} statistics={about.data} common={common} />}
      {members.loading && members.items.length === 0 && <Loading />}
      {common > 0 && loaded[0]?.turns && (
        <details class="common">
          <summary>
            <Badge tone="info">common</Badge> All begin with the same {count(common)} {common === 1 ? "turn" : "turns"}: show
          </summary>
          <Conversation turns={loaded[0].turns.slice(0, common)} />
        </details>
      )}
      {loaded.length > 0 && <Columns members={loaded} common={common} />}
      {(left > 0 || members.hasMore) && (
        <p>
          <button
            type="button"
            onClick={() => {
              setShown(first.length + AT_ONCE);
              if (left <= AT_ONCE) members.more();
            }}
          >
            Show more trajectories {!members.hasMore && `(${left})`}
          </button>
        </p>
      )}
    </div>
  );
}

/** The statistics of one group: the list of groups, asked with a member, has them without reading them all. */
function useGroup(job: string, group: string): Resource<GroupStatistics> {
  return useResource(
    async (signal) => (await get<Whole>(`v1/preview/trajectories/${segment(`${job}.${group}.0`)}`, {}, { signal })).group_statistics,
    [job, group],
  );
}

function Statistics({ of }: { of: Resource<GroupStatistics> }) {
  const data = of.data;
  if (!data) return null;
  return (
    <>
      <dl class="facts">
        <dt>Reward</dt>
        <dd><strong>{number(data.reward_mean)}</strong> on average, spread {number(data.reward_std_dev, 3)}, from {number(data.reward_min)} to {number(data.reward_max)}</dd>
        <dt>Trajectories</dt>
        <dd>{count(data.size)}{data.num_failed > 0 && <>, and {count(data.num_failed)} rollouts that failed</>}</dd>
      </dl>
      {data.sentence && <p class={`note ${data.trained === false ? "warn" : ""}`}><Text value={data.sentence} /></p>}
    </>
  );
}

/** Load turns and advantages of some trajectories. Those that are loaded stay. */
function useMembers(summaries: Summary[]): Member[] {
  const [found, setFound] = useState<Record<string, Omit<Member, "summary">>>({});
  const ids = summaries.map((one) => one.id).join(" ");
  useEffect(() => {
    const controller = new AbortController();
    for (const { id } of summaries) {
      if (found[id]) continue;
      void load(id, controller.signal).then((member) => {
        if (!controller.signal.aborted) setFound((old) => ({ ...old, [id]: member }));
      });
    }
    return () => controller.abort();
  }, [ids]);
  return useMemo(() => summaries.map((summary) => ({ summary, ...(found[summary.id] ?? EMPTY) })), [ids, found]);
}

const EMPTY = { turns: null, advantage: null, reason: null };

async function load(id: string, signal: AbortSignal): Promise<Omit<Member, "summary">> {
  const path = `v1/preview/trajectories/${segment(id)}`;
  const [whole, tokens] = await Promise.allSettled([
    get<Whole>(path, {}, { signal }),
    get<TrajectoryTokens>(`${path}/tokens`, { limit: 1 }, { signal }),
  ]);
  return {
    turns: whole.status === "fulfilled" ? turnsOf(whole.value.trajectory) : [],
    advantage: tokens.status === "fulfilled" && tokens.value.state === "trained" ? (tokens.value.sequences[0]?.advantage ?? null) : null,
    reason: tokens.status === "fulfilled" ? tokens.value.message : String((tokens.reason as Error).message),
  };
}

/** A grid: a column for each trajectory, a row for each turn after the common ones, so that turns are aligned. */
function Columns({ members, common }: { members: Member[]; common: number }) {
  const numRows = Math.max(0, ...members.map((one) => (one.turns?.length ?? 0) - common));
  return (
    <div class="side-by-side" tabIndex={0} role="region" aria-label="Trajectories side by side" style={{ "--columns": String(members.length) }}>
      {members.map((member) => <Head key={member.summary.id} member={member} />)}
      {Array.from({ length: numRows }, (_, row) =>
        members.map((member) => {
          const turn = member.turns?.[common + row];
          return <div key={`${member.summary.id} ${row}`} class="cell">{turn ? <TurnBox turn={turn} /> : member.turns ? null : row === 0 && <Loading />}</div>;
        }),
      )}
    </div>
  );
}

function Head({ member }: { member: Member }) {
  const { summary } = member;
  const metrics = Object.entries(summary.metrics).slice(0, 8);
  return (
    <section class="head card" aria-label={`Trajectory ${summary.index}`}>
      <h2><a href={href(`/trajectories/${segment(summary.id)}`)}>Trajectory {summary.index}</a></h2>
      <dl class="facts">
        <dt>Reward</dt>
        <dd><strong>{number(summary.reward)}</strong></dd>
        <dt>Advantage</dt>
        <dd>{member.advantage === null ? <span class="muted">{member.turns === null ? "…" : "none"}</span> : number(member.advantage)}</dd>
        <dt>Turns</dt>
        <dd>{count(summary.num_turns)}, {count(summary.num_tokens)} tokens</dd>
        {metrics.map(([name, value]) => (
          <>
            <dt key={name}><Text value={name} max={30} /></dt>
            <dd key={`${name} value`}>{number(value)}</dd>
          </>
        ))}
      </dl>
      {member.advantage === null && member.reason && <p class="muted small"><Text value={member.reason} max={300} /></p>}
      {summary.error && <p class="note bad"><Text value={summary.error} max={300} /></p>}
    </section>
  );
}
