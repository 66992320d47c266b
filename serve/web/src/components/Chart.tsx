/** A line chart around uPlot: hover, zoom by dragging, spread bands, alarm bands, arrow keys, and its values as a table. */
import { useEffect, useRef, useState } from "preact/hooks";
import { isDark } from "../app/theme";
import { number } from "./format";
import { plain } from "./Text";
import { type AlarmBand, plotData, plotOptions } from "./chartOptions";
import uPlot from "uplot";

export interface ChartSeries {
  label: string;
  values: readonly (number | null)[];
  /** Of the palette, 0 to 6; by default its place in the list. */
  color?: number;
  /** The spread around the values, drawn as a band. */
  low?: readonly (number | null)[];
  high?: readonly (number | null)[];
  /** Draw the line over missing values. */
  spanGaps?: boolean;
  /** Mark each value, also of many. */
  marks?: boolean;
}

export interface ChartProps {
  title: string;
  /** In ascending order. Times are seconds since 1970. */
  x: readonly number[];
  series: readonly ChartSeries[];
  xLabel?: string;
  time?: boolean;
  log?: boolean;
  height?: number;
  /** Ranges of y that mean trouble. */
  alarms?: readonly AlarmBand[];
  /** Called for a click on a point, or Enter. */
  onPick?: (index: number, series: number) => void;
  /** Charts of the same name share their cursor. */
  sync?: string;
  /** Format of values. */
  format?: (value: number) => string;
}

export type { AlarmBand };

export function Chart(props: ChartProps) {
  const { title, x, series, height = 220, onPick } = props;
  const box = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | null>(null);
  const latest = useRef(props);
  latest.current = props;
  const dark = isDark.value;
  const shape = JSON.stringify([
    series.map(({ label, color, low }) => [label, color, low !== undefined]),
    props.alarms, props.time, props.log, props.sync, props.xLabel, height, dark, onPick !== undefined,
  ]);

  useEffect(() => {
    const element = box.current;
    if (!element) return;
    const pick = (index: number, of: number): void => latest.current.onPick?.(index, of);
    const made = new uPlot(plotOptions(latest.current, element.clientWidth, pick), plotData(latest.current), element);
    plot.current = made;
    const observer = new ResizeObserver(() => made.setSize({ width: element.clientWidth, height }));
    observer.observe(element);
    return () => {
      observer.disconnect();
      made.destroy();
      plot.current = null;
    };
  }, [shape]);
  useEffect(() => plot.current?.setData(plotData(latest.current)), [x, series]);

  function onKeyDown(event: KeyboardEvent): void {
    const chart = plot.current;
    if (!chart || x.length === 0) return;
    const steps: Record<string, number> = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -Infinity, End: Infinity };
    const step = steps[event.key];
    const index = chart.cursor.idx;
    if (step !== undefined) {
      event.preventDefault();
      moveCursor(chart, Math.min(x.length - 1, Math.max(0, (index ?? -1) + step)), x);
    } else if (event.key === "Enter" && onPick && index !== null && index !== undefined) onPick(index, 0);
  }

  const keys = onPick ? "Arrow keys move over the points, Enter opens one." : "Arrow keys move over the points.";
  return (
    <figure class="chart">
      <figcaption>{title}</figcaption>
      <div ref={box} class="plot" tabIndex={0} role="group" aria-label={`Chart: ${plain(title)}. ${keys}`} onKeyDown={onKeyDown} />
      <ChartTable {...props} />
    </figure>
  );
}

function moveCursor(chart: uPlot, index: number, x: readonly number[]): void {
  const at = x[index];
  if (at !== undefined) chart.setCursor({ left: chart.valToPos(at, "x"), top: chart.over.clientHeight / 2 });
}

/** The same values for screen readers and for copying; at most the last 200 rows. */
function ChartTable({ x, series, xLabel = "x", time = false, format = number }: ChartProps) {
  const [open, setOpen] = useState(false);
  const from = Math.max(0, x.length - 200);
  return (
    <details class="chart-table" onToggle={(event) => setOpen(event.currentTarget.open)}>
      <summary>Values</summary>
      {open && (
        <div class="table-box" tabIndex={0} role="region" aria-label="Values of the chart">
          <table>
            <thead>
              <tr><th scope="col">{xLabel}</th>{series.map((one) => <th key={one.label} scope="col" class="right">{plain(one.label)}</th>)}</tr>
            </thead>
            <tbody>
              {x.slice(from).map((at, index) => (
                <tr key={at}>
                  <td>{time ? new Date(at * 1000).toLocaleString() : at}</td>
                  {series.map((one) => {
                    const value = one.values[from + index];
                    return <td key={one.label} class="right">{value === null || value === undefined ? "–" : format(value)}</td>;
                  })}
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      )}
    </details>
  );
}
