/** A curve as small as a word. Missing values are gaps. */
import { number } from "./format";

interface SparklineProps {
  values: readonly (number | null)[];
  label: string;
  width?: number;
  height?: number;
}

export function Sparkline({ values, label, width = 120, height = 28 }: SparklineProps) {
  const known = values.filter((value): value is number => value !== null && Number.isFinite(value));
  if (known.length === 0) return <span class="muted" aria-label={`${label}: no values`}>–</span>;
  const low = Math.min(...known);
  const span = Math.max(...known) - low || 1;
  const place = (value: number, index: number): [number, number] => [
    2 + ((width - 4) * index) / Math.max(1, values.length - 1),
    height - 3 - ((height - 6) * (value - low)) / span,
  ];
  let path = "";
  let pen = "M";
  let last: [number, number] = [0, 0];
  values.forEach((value, index) => {
    if (value === null || !Number.isFinite(value)) {
      pen = "M";
      return;
    }
    last = place(value, index);
    path += `${pen}${last[0].toFixed(1)} ${last[1].toFixed(1)}`;
    pen = "L";
  });
  const [first, end] = [known[0], known[known.length - 1]];
  return (
    <svg class="sparkline" width={width} height={height} role="img" aria-label={`${label}: from ${number(first)} to ${number(end)}`}>
      <path d={path} />
      <circle cx={last[0]} cy={last[1]} r="2.2" />
    </svg>
  );
}
