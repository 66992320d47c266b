/** In place of an empty list: what is missing, and what to do. */
import type { ComponentChildren } from "preact";

export function Empty({ title, children }: { title: string; children?: ComponentChildren }) {
  return (
    <div class="empty">
      <p class="title">{title}</p>
      {children && <div class="muted">{children}</div>}
    </div>
  );
}
