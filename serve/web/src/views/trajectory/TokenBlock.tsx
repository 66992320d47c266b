/** A block of tokens: rendered while it is near the part in sight, else a space of the same height. */
import { Component, type ComponentChildren } from "preact";
import { colour, type Overlay } from "./overlays";
import { BLOCK, CHUNK, type TokenStore } from "./tokenStore";
import { shownToken } from "./tokenText";
import type { Columns } from "./types";

export interface BlockProps {
  store: TokenStore;
  block: number;
  overlay: Overlay;
  legend: number[];
  /** The selected token if it is in this block, else -1. */
  selected: number;
  columns: Columns | null;
}

export function tokenId(token: number): string {
  return `token-${token}`;
}

/** A class, so that a block renders again only when its own props change. */
export class TokenBlock extends Component<BlockProps> {
  override shouldComponentUpdate(next: BlockProps): boolean {
    const now = this.props;
    return (Object.keys(next) as (keyof BlockProps)[]).some((name) => next[name] !== now[name]);
  }

  override render({ store, block, overlay, legend, selected, columns }: BlockProps): ComponentChildren {
    const first = block * BLOCK;
    const last = Math.min(first + BLOCK, store.whole.num_tokens);
    if (columns === null) return <p class="muted">Loading tokens {first} to {last - 1}…</p>;
    const shown: ComponentChildren[] = [];
    let sequence = store.sequenceOf(first);
    let turn = store.turnOf(first);
    for (let token = first; token < last; token += 1) {
      const at = token - columns.start;
      if (sequence === null || token >= sequence.begin + sequence.num_tokens || token === first) sequence = store.sequenceOf(token);
      if (sequence === null) break;
      if (turn === null || token >= turn.begin + turn.num_tokens) turn = store.turnOf(token);
      if (token === sequence.begin && store.whole.sequences.length > 1) {
        shown.push(<span key={`s${token}`} class="sequence-mark">Sequence {store.whole.sequences.indexOf(sequence) + 1}, history {sequence.history}</span>);
      }
      if (turn?.begin === token) {
        shown.push(
          <span key={`t${token}`} class="turn-mark">turn {turn.index}{turn.policy_version !== null && `, version ${turn.policy_version}`}</span>,
        );
      }
      const parts = shownToken(columns.texts[at] ?? "", columns.bytes[at] ?? null);
      const value = overlay.value(columns, at, sequence, turn?.policy_version ?? null);
      shown.push(
        <span
          key={token}
          id={tokenId(token)}
          role="option"
          aria-selected={token === selected}
          data-token={token}
          class={`token${columns.mask[at] ? " trained" : ""}`}
          style={{ background: colour(overlay, value, store.whole, legend) }}
        >
          {parts.map((part, index) => (part.special ? <i key={index}>{part.text}</i> : part.text))}
        </span>,
      );
      if (parts.some((part) => part.breaks)) shown.push(<br key={`b${token}`} />);
    }
    return shown;
  }
}

/** Blocks never cross chunks, so each has one set of columns. */
if (CHUNK % BLOCK !== 0) throw new Error("CHUNK must be a multiple of BLOCK");
