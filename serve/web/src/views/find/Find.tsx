/** Find trajectories by reward, version, metadata, metrics and text. */
import { Badge } from "../../components/Badge";
import { Empty } from "../../components/Empty";
import { ErrorBox } from "../../components/ErrorBox";
import { Loading } from "../../components/Loading";
import { Table, type Column } from "../../components/Table";
import { Text, plain } from "../../components/Text";
import { Time } from "../../components/Time";
import { count, number } from "../../components/format";
import { href, segment, type ViewProps } from "../../app/router";
import type { Params } from "../../app/api";
import { ConditionError, readFilters, requestOf } from "./filters";
import { FindForm } from "./FindForm";
import type { Trajectory, TrajectoryPage } from "./types";
import { useList, type List } from "./useList";

export function Find({ query }: ViewProps) {
  const filters = readFilters(query);
  let params: Params | null = null;
  let fault: Error | null = null;
  try {
    params = requestOf(filters);
  } catch (error) {
    if (!(error instanceof ConditionError)) throw error;
    fault = error;
  }
  return (
    <>
      <h1>Find trajectories</h1>
      <FindForm filters={filters} />
      {fault && <ErrorBox error={fault} />}
      {params && <Results params={params} isSearch={filters.text !== ""} />}
    </>
  );
}

function Results({ params, isSearch }: { params: Params; isSearch: boolean }) {
  const list = useList<Trajectory, TrajectoryPage>("v1/preview/trajectories", params);
  const isNarrowed = Object.keys(params).length > 0;
  return (
    <>
      {list.error && <ErrorBox error={list.error} onRetry={list.items.length ? list.more : list.reload} />}
      <Notes page={list.first} />
      {isSearch ? <Progress list={list} /> : <Total list={list} />}
      {list.items.length > 0 ? (
        <Table
          label="Trajectories"
          rows={list.items}
          rowKey={(item) => item.id}
          rowHeight={isSearch ? 58 : 36}
          hasMore={list.hasMore && !isSearch}
          onEnd={isSearch ? undefined : list.more}
          columns={isSearch ? SEARCH_COLUMNS : COLUMNS}
        />
      ) : list.loading ? (
        !isSearch && <Loading />
      ) : (
        !list.error && (
          <Empty title={isNarrowed ? "Nothing matches" : "There are no trajectories yet"}>
            {isNarrowed ? "Widen the filters, or clear them." : <>Those of training jobs, logs and evaluations appear here: <a href="#/start">Start</a> has the lines to copy.</>}
          </Empty>
        )
      )}
    </>
  );
}

function Notes({ page }: { page: TrajectoryPage | null }) {
  if (!page) return null;
  const { jobs, logs } = page.still_indexing;
  const parts = [jobs > 0 && `${count(jobs)} ${jobs === 1 ? "job" : "jobs"}`, logs > 0 && `${count(logs)} ${logs === 1 ? "log" : "logs"}`].filter(Boolean);
  return (
    <>
      {parts.length > 0 && <p class="note" role="status">Still being indexed: {parts.join(" and ")}. Their trajectories appear in a moment.</p>}
      {page.notes.length > 0 && (
        <details class="find-notes muted">
          <summary>Not listed here ({page.notes.length})</summary>
          <ul>{page.notes.map((note) => <li key={note}><Text value={note} /></li>)}</ul>
        </details>
      )}
    </>
  );
}

function Total({ list }: { list: List<Trajectory, TrajectoryPage> }) {
  const total = list.first?.total;
  return total === null || total === undefined ? null : <p class="muted" role="status">{count(total)} {total === 1 ? "trajectory" : "trajectories"}</p>;
}

function Progress({ list }: { list: List<Trajectory, TrajectoryPage> }) {
  const progress = list.last?.progress;
  const found = `${count(list.items.length)} found`;
  return (
    <div class="row find-progress">
      <progress max={progress?.of || 1} value={progress ? (progress.of ? progress.searched : 1) : 0} aria-label="Searched" />
      <span role="status">
        {progress ? `${found}, searched ${count(progress.searched)} of ${count(progress.of)}` : "Searching…"}
        {progress && progress.unreadable > 0 && `, ${count(progress.unreadable)} can't be read`}
      </span>
      {list.loading ? (
        <button type="button" onClick={list.stop}>Stop</button>
      ) : (
        list.hasMore && <button type="button" onClick={list.more}>Continue</button>
      )}
    </div>
  );
}

const EXCERPT: Column<Trajectory> = {
  key: "excerpt",
  label: "Found",
  cell: ({ id, excerpt }) =>
    excerpt && (
      <a class="find-excerpt" href={href(`/trajectories/${segment(id)}`)}>
        <span class="muted"><Text value={excerpt.place} max={40} /></span>
        <span class="find-words"><bdi>{plain(excerpt.before.slice(-36))}<mark>{plain(excerpt.match)}</mark>{plain(excerpt.after)}</bdi></span>
      </a>
    ),
};

const COLUMNS: Column<Trajectory>[] = [
  { key: "reward", label: "Reward", align: "right", width: "90px", cell: (item) => (item.reward === null ? <Badge tone="bad">failed</Badge> : number(item.reward)) },
  {
    key: "place",
    label: "Trajectory",
    cell: (item) => (
      <a href={href(`/trajectories/${segment(item.id)}`)} title={item.id}>
        <Text value={item.model} max={34} /> group {item.group}, {item.reward === null ? "rollout" : "trajectory"} {item.index}
      </a>
    ),
  },
  { key: "version", label: "Version", align: "right", width: "84px", cell: versions },
  { key: "split", label: "Split", width: "80px", cell: (item) => <Text value={item.split} max={12} /> },
  { key: "turns", label: "Turns", align: "right", width: "70px", wide: true, cell: (item) => count(item.num_turns) },
  { key: "tools", label: "Tool calls", align: "right", width: "92px", wide: true, cell: (item) => count(item.num_tool_calls) },
  { key: "tokens", label: "Tokens", align: "right", width: "82px", wide: true, cell: (item) => count(item.num_tokens) },
  { key: "about", label: "Error or metadata", wide: true, cell: about },
  { key: "when", label: "Arrived", width: "104px", wide: true, cell: (item) => <Time at={item.created_at} /> },
];

const SEARCH_COLUMNS = [EXCERPT, ...COLUMNS.slice(0, 4)];

function versions({ first_version: first, last_version: last }: Trajectory): string {
  if (first === null) return "–";
  return last === null || last === first ? String(first) : `${first}–${last}`;
}

function about(item: Trajectory) {
  if (item.error) return <span class="find-error"><Text value={item.error} max={80} /></span>;
  const known = Object.entries(item.metadata).slice(0, 4).map(([name, value]) => `${name}=${value}`);
  return <span class="muted"><Text value={known.join(" ")} max={60} /></span>;
}
