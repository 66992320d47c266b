/** The trajectory groups of a version, the worst first: who got which reward, and whether the group trained. */
import { Badge } from "../../components/Badge";
import { Empty } from "../../components/Empty";
import { ErrorBox } from "../../components/ErrorBox";
import { Loading } from "../../components/Loading";
import { Table, type Column } from "../../components/Table";
import { Text } from "../../components/Text";
import { count, number } from "../../components/format";
import type { Page } from "../../app/api";
import { useGet } from "../../app/resource";
import { href, segment, setQuery, type ViewProps } from "../../app/router";
import { useList } from "../find/useList";
import type { GroupStatistics } from "../trajectory/types";
import { Rewards, type Reward } from "./Rewards";

interface Group extends GroupStatistics {
  rewards: Reward[];
}

interface GroupPage extends Page<Group> {
  job_id: string | null;
  total: number;
  still_indexing: boolean;
  notes: string[];
}

interface Model {
  project: string;
  name: string;
  step: number;
}

const SORTS = { worst: "Lowest mean first", best: "Highest mean first", spread: "Largest spread first", order: "In their order" };

export function Groups({ params, query }: ViewProps) {
  const id = params["id"] ?? "";
  const model = useGet<Model>(`v1/preview/models/${segment(id)}`);
  const asked = query.get("step");
  const step = asked === null || asked === "" ? (model.data?.step ?? null) : Number(asked);
  const sort = query.get("sort") ?? "worst";
  return (
    <>
      <h1>
        Groups of version {step ?? "…"} of{" "}
        <a href={href(`/models/${segment(id)}`)}>{model.data ? <Text value={`${model.data.project}/${model.data.name}`} max={80} /> : "the model"}</a>
      </h1>
      {model.error && <ErrorBox error={model.error} onRetry={model.reload} />}
      {step !== null && (
        <>
          <div class="row">
            <button type="button" disabled={step <= 1} onClick={() => setQuery({ step: step - 1 })}>← Version {Math.max(step - 1, 0)}</button>
            <button type="button" disabled={model.data !== null && step >= model.data.step} onClick={() => setQuery({ step: step + 1 })}>Version {step + 1} →</button>
            <label class="row groups-sort">
              Order
              <select value={sort} onChange={(event) => setQuery({ sort: event.currentTarget.value })}>
                {Object.entries(SORTS).map(([name, label]) => <option key={name} value={name}>{label}</option>)}
              </select>
            </label>
            <span class="grow" />
            <a href={href("/trajectories", { model: id, step: step - 1, split: "eval" })}>Evaluations of version {step - 1}</a>
          </div>
          <List path={`v1/preview/models/${segment(id)}/groups`} step={step} sort={sort} />
        </>
      )}
    </>
  );
}

function List({ path, step, sort }: { path: string; step: number; sort: string }) {
  const list = useList<Group, GroupPage>(path, { step, sort });
  const first = list.first;
  const all = list.items.flatMap((group) => group.rewards.map((one) => one.reward ?? 0));
  const low = Math.min(0, ...all.slice(0, 20_000));
  const high = Math.max(0, ...all.slice(0, 20_000));
  return (
    <>
      {list.error && <ErrorBox error={list.error} onRetry={list.reload} />}
      {first?.still_indexing && <p class="note" role="status">Still being indexed: more groups appear in a moment. <button type="button" class="quiet" onClick={list.reload}>Load again</button></p>}
      {first?.notes.map((note) => <p key={note} class="note warn"><Text value={note} /></p>)}
      {first && first.total > 0 && first.job_id && (
        <p class="muted">
          {count(first.total)} groups of <a href={href(`/jobs/${segment(first.job_id)}`)}>the job that made it</a>. Open a group to see its trajectories side by side, and why each trained as it did.
        </p>
      )}
      {list.items.length > 0 ? (
        <Table
          label="Groups"
          rows={list.items}
          rowKey={(group) => group.id}
          rowHeight={58}
          hasMore={list.hasMore}
          onEnd={list.more}
          columns={columns(first?.job_id ?? "", low, high)}
        />
      ) : list.loading ? (
        <Loading />
      ) : (
        !list.error && !first?.still_indexing && <Empty title="This version has no groups">Only versions that a reinforcement learning job made have them.</Empty>
      )}
    </>
  );
}

function columns(job: string, low: number, high: number): Column<Group>[] {
  return [
    { key: "group", label: "Group", width: "110px", cell: (group) => <a href={href(`/jobs/${segment(job)}/groups/${group.group}`)}>Group {group.group}</a> },
    { key: "mean", label: "Mean", align: "right", width: "84px", cell: (group) => number(group.reward_mean) },
    { key: "spread", label: "Std dev", align: "right", width: "84px", cell: (group) => number(group.reward_std_dev, 3) },
    { key: "rewards", label: "Rewards, from the lowest", width: "260px", cell: (group) => <Rewards rewards={group.rewards} low={low} high={high} /> },
    { key: "range", label: "Range", wide: true, cell: (group) => (group.reward_min === null ? "–" : `${number(group.reward_min)} to ${number(group.reward_max)}`) },
    { key: "size", label: "Size", wide: true, align: "right", cell: (group) => (group.num_failed ? `${group.size} + ${group.num_failed} failed` : group.size) },
    { key: "tokens", label: "Tokens", wide: true, align: "right", cell: (group) => count(group.num_tokens) },
    { key: "trained", label: "Trained", cell: outcome },
  ];
}

const WORDS: Record<string, string> = { equal_rewards: "equal rewards", alone_in_group: "alone", no_choices: "nothing sampled", empty: "empty" };

function outcome(group: Group) {
  const word = group.trained ? "trained" : group.trained === null ? "not known yet" : (WORDS[group.reason ?? ""] ?? group.reason ?? "not trained");
  return <span title={group.sentence ?? undefined}><Badge tone={group.trained ? "good" : group.trained === null ? "neutral" : "warn"}>{word}</Badge></span>;
}
