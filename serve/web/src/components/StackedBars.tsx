/** Columns over time, each a stack of parts. The values are in the titles, and in the table that goes with it. */
import { plain } from "./Text";

export interface Part {
  label: string;
  /** A class that gives the colour, such as "part-1". */
  tone: string;
}

export interface Bar {
  /** Of the column, such as a day. */
  label: string;
  /** A value for each part. */
  values: readonly number[];
}

interface StackedBarsProps {
  label: string;
  parts: readonly Part[];
  bars: readonly Bar[];
  format: (value: number) => string;
  /** The value of a full column; by default that of the highest one. */
  full?: number;
  height?: number;
}

const MAX_LABELS = 8;

export function StackedBars({ label, parts, bars, format, full, height = 180 }: StackedBarsProps) {
  const sums = bars.map((bar) => bar.values.reduce((sum, value) => sum + value, 0));
  const top = full ?? Math.max(0, ...sums);
  const every = Math.max(1, Math.ceil(bars.length / MAX_LABELS));
  return (
    <figure class="stacked" role="img" aria-label={label}>
      {full === undefined && <span class="stacked-top muted">{top > 0 ? format(top) : ""}</span>}
      <div class="stacked-plot" style={{ height: `${height}px` }}>
        {bars.map((bar, index) => (
          <div key={bar.label + index} class="stacked-bar" title={titleOf(bar, parts, format)}>
            {bar.values.map((value, part) =>
              value > 0 && top > 0 ? <span key={part} class={parts[part]?.tone} style={{ height: `${(100 * value) / top}%` }} /> : null,
            )}
          </div>
        ))}
      </div>
      <div class="stacked-axis muted" aria-hidden="true">
        {bars.map((bar, index) => <span key={bar.label + index}>{index % every === 0 ? <i>{bar.label}</i> : null}</span>)}
      </div>
    </figure>
  );
}

function titleOf(bar: Bar, parts: readonly Part[], format: (value: number) => string): string {
  const lines = bar.values.flatMap((value, part) => (value > 0 ? [`${plain(parts[part]?.label ?? "")}: ${format(value)}`] : []));
  return [bar.label, ...lines].join("\n");
}

/** What the colours stand for, with a value for each. */
export function Legend({ entries }: { entries: readonly (Part & { value: string })[] }) {
  return (
    <ul class="legend plain">
      {entries.map((entry) => (
        <li key={entry.label}>
          <span class={`swatch ${entry.tone}`} aria-hidden="true" />
          <span><bdi>{plain(entry.label)}</bdi></span> <strong>{entry.value}</strong>
        </li>
      ))}
    </ul>
  );
}
