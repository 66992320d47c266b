/** uPlot's options and data for a chart. Series differ by colour, dash and mark, so that no one depends on colour. */
import uPlot from "uplot";
import { color } from "../app/theme";
import type { ChartProps } from "./Chart";
import { number } from "./format";
import { plain } from "./Text";

export interface AlarmBand {
  /** Open at an end that is left out. */
  from?: number;
  to?: number;
  tone: "warn" | "bad";
}

const PALETTE = 7;
const DASHES = [[], [7, 4], [2, 3], [9, 3, 2, 3], [], [7, 4], [2, 3]];
const BORDERS: Record<number, string> = { 0: "solid", 2: "dashed", 4: "double" };
const MAX_MARKS = 60;

export function seriesColor(index: number): string {
  return color(`--series-${(index % PALETTE) + 1}`);
}

type Values = readonly (number | null)[];

/** One row per curve: x, then for each series its values and the ends of its spread. */
export function plotData({ x, series }: ChartProps): uPlot.AlignedData {
  const rows: Values[] = [x];
  for (const one of series) {
    rows.push(one.values);
    if (one.low && one.high) rows.push(one.low, one.high);
  }
  return rows.map((row) => row.map((value) => (value === null || Number.isFinite(value) ? value : null))) as uPlot.AlignedData;
}

export function plotOptions(props: ChartProps, width: number, pick: (index: number, series: number) => void): uPlot.Options {
  const { series, time = false, log = false, height = 220, sync, xLabel = "" } = props;
  const text = color("--text-muted");
  const grid = { stroke: color("--grid"), width: 1 };
  const axis = { stroke: text, grid, ticks: grid, font: "12px system-ui, sans-serif", labelFont: "12px system-ui, sans-serif" };
  const { curves, bands } = curvesOf(props);
  return {
    width,
    height,
    scales: { x: { time }, y: { distr: log ? 3 : 1, range: log ? undefined : padded } },
    axes: [
      { ...axis, label: xLabel, labelSize: xLabel ? 18 : 0, size: 34, ...(time ? {} : { incrs: WHOLE_STEPS }) },
      { ...axis, size: 62, values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : number(tick, 3))) },
    ],
    series: [{ label: xLabel || "x" }, ...curves],
    bands,
    cursor: {
      sync: sync ? { key: sync } : undefined,
      focus: { prox: 24 },
      drag: { x: true, y: false },
    },
    legend: { live: true, markers: { dash: (_, index) => BORDERS[curves[index - 1]?.dash?.length ?? 0] ?? "solid" } },
    hooks: {
      drawClear: [(chart) => drawAlarms(chart, props.alarms ?? [])],
      // A click that ends a drag doesn't arrive: uPlot stops it.
      ready: [(chart) => chart.over.addEventListener("click", () => picked(chart, series.length, curves, pick))],
    },
  };
}

const WHOLE_STEPS = [1, 2, 5].flatMap((digit) => [1, 10, 100, 1e3, 1e4, 1e5, 1e6].map((power) => digit * power)).sort((a, b) => a - b);

/** A range with room at both ends, also for a curve that is flat. */
function padded(_: uPlot, low: number | null, high: number | null): uPlot.Range.MinMax {
  if (low === null || high === null) return [0, 1];
  const room = (high - low) * 0.08 || Math.abs(high) * 0.1 || 0.1;
  return [low - room, high + room];
}

function curvesOf({ series, format = number, x }: ChartProps): { curves: uPlot.Series[]; bands: uPlot.Band[] } {
  const curves: uPlot.Series[] = [];
  const bands: uPlot.Band[] = [];
  series.forEach((one, place) => {
    const index = one.color ?? place;
    const stroke = seriesColor(index);
    const value = (_: uPlot, raw: number | null): string => (raw === null || raw === undefined ? "–" : format(raw));
    const marks = { show: one.marks === true || x.length <= MAX_MARKS, size: 5, fill: stroke };
    curves.push({ label: plain(one.label), stroke, width: 2, dash: DASHES[index % PALETTE], points: marks, value, spanGaps: one.spanGaps === true });
    if (one.low && one.high) {
      const edge = { stroke: "transparent", class: "spread", points: { show: false }, value, spanGaps: one.spanGaps === true };
      curves.push({ ...edge, label: "low" }, { ...edge, label: "high" });
      bands.push({ series: [curves.length, curves.length - 1], fill: `${stroke}2e` });
    }
  });
  return { curves, bands };
}

/** Report a click near a point; a drag, which zooms, isn't one. */
function picked(chart: uPlot, count: number, curves: uPlot.Series[], pick: (index: number, series: number) => void): void {
  const index = chart.cursor.idx;
  if (index === null || index === undefined || chart.select.width > 0) return;
  const focused = chart.series.findIndex((one, place) => place > 0 && (one as { _focus?: boolean | null })._focus === true);
  const shown = curves.slice(0, Math.max(0, focused)).filter((one) => one.class !== "spread").length;
  pick(index, focused > 0 ? Math.min(count - 1, shown - 1) : 0);
}

function drawAlarms(chart: uPlot, alarms: readonly AlarmBand[]): void {
  const { ctx, bbox } = chart;
  ctx.save();
  ctx.beginPath();
  ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
  ctx.clip();
  for (const { from, to, tone } of alarms) {
    const top = to === undefined ? bbox.top : chart.valToPos(to, "y", true);
    const bottom = from === undefined ? bbox.top + bbox.height : chart.valToPos(from, "y", true);
    ctx.fillStyle = color(`--${tone}-bg`);
    ctx.fillRect(bbox.left, top, bbox.width, bottom - top);
  }
  ctx.restore();
}
