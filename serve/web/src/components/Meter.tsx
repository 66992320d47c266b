/** A small bar that shows how full something is, with its numbers as text. */
import type { ComponentChildren } from "preact";

interface MeterProps {
  label: string;
  /** The numbers, as text. */
  children: ComponentChildren;
  /** 0 to 1; null: not known. */
  share: number | null;
  /** From this share on, the bar warns. */
  warnFrom?: number;
}

export function Meter({ label, children, share, warnFrom = 0.95 }: MeterProps) {
  const shown = share === null ? 0 : Math.min(1, Math.max(0, share));
  return (
    <div class="meter">
      <span class="meter-label">{label}</span>
      <span class="meter-value">{children}</span>
      <span
        class={share !== null && share >= warnFrom ? "meter-bar warn" : "meter-bar"}
        role="meter"
        aria-label={label}
        aria-valuemin={0}
        aria-valuemax={100}
        aria-valuenow={Math.round(100 * shown)}
        aria-valuetext={share === null ? "not known" : undefined}
      >
        <span style={{ width: `${100 * shown}%` }} />
      </span>
    </div>
  );
}
