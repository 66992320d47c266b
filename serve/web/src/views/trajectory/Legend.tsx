/** The scale of an overlay in colours and numbers. */
import { colour, legendText, type Overlay } from "./overlays";
import type { TrajectoryTokens } from "./types";

export function Legend({ overlay, whole, legend }: { overlay: Overlay; whole: TrajectoryTokens; legend: number[] }) {
  return (
    <div class="token-legend">
      {legend.length > 0 && (
        <ul aria-label="Scale">
          {legend.map((value) => (
            <li key={value}><span class="swatch" style={{ background: colour(overlay, value, whole, legend) }} aria-hidden="true" />{legendText(overlay, value)}</li>
          ))}
        </ul>
      )}
      <p class="muted">{overlay.about}</p>
    </div>
  );
}
