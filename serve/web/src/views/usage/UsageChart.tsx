/** The bill over time: a column for each day or hour, stacked by the largest groups. */
import { useState } from "preact/hooks";
import { useGet } from "../../app/resource";
import { Loaded } from "../../components/Loaded";
import { Legend, StackedBars } from "../../components/StackedBars";
import { nameOf } from "./groups";
import { measures, type Measure } from "./measures";
import { columnsOf, endOf, type Period } from "./periods";
import type { GroupBy, UsagePage } from "./types";

const MAX_PARTS = 6;
const MAX_ROWS = 1000;

export function UsageChart({ period, by }: { period: Period; by: GroupBy }) {
  const columns = columnsOf(period);
  const params = { from: period.from, to: endOf(period), group_by: [columns.by, by], limit: MAX_ROWS };
  const usage = useGet<UsagePage>("v1/preview/usage", params);
  return <Loaded of={usage}>{(page) => <ChartOf page={page} names={columns.names} hourly={columns.by === "hour"} by={by} />}</Loaded>;
}

function ChartOf({ page, names, hourly, by }: { page: UsagePage; names: string[]; hourly: boolean; by: GroupBy }) {
  const known = measures(page.total);
  const [wanted, setWanted] = useState<string | null>(null);
  const measure = known.find((one) => one.name === wanted) ?? known.find((one) => one.of(page.total) > 0) ?? known[0];
  if (!measure || page.data.length === 0) return null;
  const { parts, bars, sums } = stacked(page, names, by, measure, hourly);
  return (
    <>
      <label class="measure">
        <span>Show</span>{" "}
        <select value={measure.name} onChange={(event) => setWanted(event.currentTarget.value)}>
          {known.map((one) => <option key={one.name} value={one.name}>{one.label}</option>)}
        </select>
      </label>
      <StackedBars label={`${measure.label}, ${hourly ? "by the hour" : "by the day"}`} parts={parts} bars={bars} format={measure.format} />
      <Legend entries={parts.map((part, index) => ({ ...part, value: measure.format(sums[index] ?? 0) }))} />
      {page.has_more && <p class="note">The chart has the first {MAX_ROWS} parts only; choose a shorter time or larger groups. The table has all.</p>}
    </>
  );
}

/** Put the rows into columns and parts: the largest groups, and the others together. */
function stacked(page: UsagePage, names: string[], by: GroupBy, measure: Measure, hourly: boolean) {
  const sums = new Map<string, number>();
  for (const item of page.data) sums.set(nameOf(item, by), (sums.get(nameOf(item, by)) ?? 0) + measure.of(item));
  const ranked = [...sums].filter(([, value]) => value > 0).sort((one, other) => other[1] - one[1]);
  const largest = ranked.slice(0, ranked.length > MAX_PARTS + 1 ? MAX_PARTS : MAX_PARTS + 1).map(([name]) => name);
  const others = ranked.length - largest.length;
  const parts = largest.map((name, index) => ({ label: name, tone: `part-${index + 1}` }));
  if (others > 0) parts.push({ label: `${others} others`, tone: "part-rest" });
  const bars = names.map((name) => ({ label: hourly ? name.slice(11, 16) : name.slice(5), values: parts.map(() => 0) }));
  const place = new Map(names.map((name, index) => [name, index]));
  const totals = parts.map(() => 0);
  for (const item of page.data) {
    const bar = bars[place.get((hourly ? item.hour : item.day) ?? "") ?? -1];
    const found = largest.indexOf(nameOf(item, by));
    const part = found >= 0 ? found : parts.length - 1;
    const value = measure.of(item);
    if (!bar || value === 0) continue;
    bar.values[part] = (bar.values[part] ?? 0) + value;
    totals[part] = (totals[part] ?? 0) + value;
  }
  return { parts, bars, sums: totals };
}
