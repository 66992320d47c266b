/** The part of the tree's lines beside one row. Lines reach to its lower end, however high it is. */
import type { Lanes } from "./lanes";

const LANE = 14;
const MIDDLE = 22; // px from the top of the row

/** The width of so many lanes in px. */
export function graphWidth(lanes: number): number {
  return LANE * lanes + 2;
}

const x = (lane: number): number => LANE * lane + LANE / 2 + 1;

interface GraphProps {
  lanes: Lanes;
  /** A run is drawn as a dashed line with a wide point. */
  isRun: boolean;
  isGone: boolean;
  width: number;
}

export function Graph({ lanes, isRun, isGone, width }: GraphProps) {
  const at = x(lanes.at);
  return (
    <svg class="version-graph" width={graphWidth(width)} aria-hidden="true">
      {lanes.passing.map((lane) => <line key={lane} x1={x(lane)} x2={x(lane)} y1="0" y2="100%" />)}
      {lanes.joining.map((lane) => <path key={lane} d={lane === lanes.at ? `M${at} 0V${MIDDLE}` : `M${x(lane)} 0C${x(lane)} ${MIDDLE} ${at} ${MIDDLE / 2} ${at} ${MIDDLE}`} />)}
      {lanes.continues && <line class={isRun ? "run" : undefined} x1={at} x2={at} y1={MIDDLE} y2="100%" />}
      {isRun ? <rect x={at - 4} y={MIDDLE - 8} width="8" height="16" rx="4" class={isGone ? "gone" : ""} /> : <circle cx={at} cy={MIDDLE} r="5" class={isGone ? "gone" : ""} />}
    </svg>
  );
}

/** Lines that pass a row without a version, above one (`before`) or below it. */
export function PassingLines({ lanes, width, before }: { lanes: Lanes; width: number; before: boolean }) {
  const shown = before ? [...lanes.passing, ...lanes.joining] : [...lanes.passing, ...(lanes.continues ? [lanes.at] : [])];
  return (
    <svg class="version-graph" width={graphWidth(width)} aria-hidden="true">
      {shown.map((lane) => <line key={lane} x1={x(lane)} x2={x(lane)} y1="0" y2="100%" />)}
    </svg>
  );
}
