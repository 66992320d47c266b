/** The ledger: what was used and what it cost, over time and by model, key, project or job. */
import { useState } from "preact/hooks";
import { usePages, useGet } from "../../app/resource";
import { setQuery, type ViewProps } from "../../app/router";
import { download } from "../../app/api";
import { Empty } from "../../components/Empty";
import { ErrorBox } from "../../components/ErrorBox";
import { compact, count, duration } from "../../components/format";
import { Loaded } from "../../components/Loaded";
import { money } from "../../components/phases";
import { Table, type Column } from "../../components/Table";
import { TimeBar } from "../../components/TimeBar";
import { GroupName } from "./groups";
import { endOf, PERIODS, periodOf, type Period } from "./periods";
import { UsageChart } from "./UsageChart";
import { GROUPS, type Amounts, type GroupBy, type UsageItem, type UsagePage } from "./types";

export function Usage({ query }: ViewProps) {
  const name = query.get("period") ?? "week";
  const period = periodOf(name, query.get("from"), query.get("to"));
  const by = GROUPS.find((one) => one.by === query.get("by"))?.by ?? "model";
  return (
    <>
      <h1>Usage</h1>
      <Periods current={query.get("from") ? "" : name} period={period} />
      <Totals period={period} />
      <div class="row groups" role="group" aria-label="Group by">
        {GROUPS.map((one) => (
          <button key={one.by} type="button" aria-pressed={by === one.by} onClick={() => setQuery({ by: one.by })}>{one.label}</button>
        ))}
      </div>
      <UsageChart key={by} period={period} by={by} />
      <Groups period={period} by={by} />
      <h2>Who waited for whom</h2>
      <TimeBar />
    </>
  );
}

function Periods({ current, period }: { current: string; period: Period }) {
  const change = (field: "from" | "to") => (event: Event) => {
    const value = (event.currentTarget as HTMLInputElement).value;
    if (value) setQuery({ ...period, [field]: value });
  };
  return (
    <div class="row periods" role="group" aria-label="Time">
      {PERIODS.map((one) => (
        <button key={one.name} type="button" aria-pressed={current === one.name} onClick={() => setQuery({ period: one.name, from: null, to: null })}>
          {one.label}
        </button>
      ))}
      <label class="only-wide">From <input type="date" value={period.from} onChange={change("from")} /></label>
      <label class="only-wide">to <input type="date" value={period.to} onChange={change("to")} /></label>
      <span class="muted only-wide">Days are in UTC.</span>
    </div>
  );
}

function Totals({ period }: { period: Period }) {
  const usage = useGet<UsagePage>("v1/preview/usage", { from: period.from, to: endOf(period) });
  return (
    <Loaded of={usage}>
      {({ total }) =>
        isEmpty(total) ? (
          <Empty title="Nothing was used in this time">Choose another time, or sample and train: amounts arrive within seconds.</Empty>
        ) : (
          <>
            <dl class="tiles">
              <Tile name="Cost" value={money(total.costs)} />
              <Tile name="Sampled tokens" value={compact(total.sampled_tokens)} />
              <Tile name="Prompt tokens" value={compact(total.prompt_tokens)} note={`${compact(total.cached_prompt_tokens)} cached`} />
              <Tile name="Trained tokens" value={compact(total.trained_tokens)} />
              <Tile name="Learner time" value={duration(total.learner_seconds)} />
              <Tile name="Engine time" value={duration(total.engine_seconds)} />
            </dl>
            {Object.keys(total.costs).length === 0 && <p class="muted">Nothing had a price in this time. Set <code>prices</code> in the service's configuration to see costs.</p>}
          </>
        )
      }
    </Loaded>
  );
}

function Tile({ name, value, note }: { name: string; value: string; note?: string }) {
  return (
    <div class="tile">
      <dt>{name}</dt>
      <dd>{value}{note && <span class="muted"> {note}</span>}</dd>
    </div>
  );
}

function isEmpty(total: Amounts): boolean {
  return total.requests + total.sampled_tokens + total.seconds + total.engine_seconds + total.learner_seconds === 0;
}

const COLUMNS: Column<UsageItem>[] = [
  { key: "cost", label: "Cost", align: "right", cell: (item) => money(item.costs) },
  { key: "requests", label: "Prompts", align: "right", wide: true, cell: (item) => some(item.requests, count) },
  { key: "prompt", label: "Prompt tokens", align: "right", wide: true, cell: (item) => some(item.prompt_tokens, compact) },
  { key: "sampled", label: "Sampled", align: "right", cell: (item) => some(item.sampled_tokens, compact) },
  { key: "scored", label: "Scored", align: "right", wide: true, cell: (item) => some(item.scored_tokens + item.engine_scored_tokens, compact) },
  { key: "trained", label: "Trained", align: "right", cell: (item) => some(item.trained_tokens, compact) },
  { key: "learner", label: "Learner", align: "right", wide: true, cell: (item) => some(item.learner_seconds, duration) },
  { key: "engine", label: "Engine", align: "right", wide: true, cell: (item) => some(item.engine_seconds, duration) },
  { key: "cpu", label: "CPU", align: "right", wide: true, cell: (item) => some(item.cpu_seconds, duration) },
];

function Groups({ period, by }: { period: Period; by: GroupBy }) {
  const params = { from: period.from, to: endOf(period), group_by: [by] };
  const pages = usePages<UsageItem>("v1/preview/usage", params);
  const label = GROUPS.find((one) => one.by === by)?.label ?? by;
  const columns: Column<UsageItem>[] = [{ key: "name", label, cell: (item) => <GroupName item={item} by={by} /> }, ...COLUMNS];
  if (pages.error) return <ErrorBox error={pages.error} onRetry={pages.reload} />;
  if (pages.items.length === 0) return null;
  return (
    <>
      <Table columns={columns} rows={pages.items} rowKey={(item) => item.id} label={`Usage by ${label.toLowerCase()}`} onEnd={pages.more} hasMore={pages.hasMore} />
      <Csv period={period} by={by} />
    </>
  );
}

function Csv({ period, by }: { period: Period; by: GroupBy }) {
  const [error, setError] = useState<Error | null>(null);
  const save = async (): Promise<void> => {
    setError(null);
    try {
      await download("v1/preview/usage", `usage-${period.from}-${period.to}.csv`, { from: period.from, to: endOf(period), group_by: ["day", by], format: "csv" });
    } catch (failure) {
      setError(failure instanceof Error ? failure : new Error(String(failure)));
    }
  };
  return (
    <div class="row csv">
      <button type="button" onClick={save}>Download CSV by day</button>
      {error && <ErrorBox error={error} />}
    </div>
  );
}

function some(value: number, format: (value: number) => string): string {
  return value > 0 ? format(value) : "–";
}
