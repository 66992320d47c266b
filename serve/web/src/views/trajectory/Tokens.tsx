/** All tokens of a trajectory, coloured by an overlay, with the numbers of the one that is pointed at or selected. */
import { useEffect, useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";
import { Badge } from "../../components/Badge";
import { CopyButton } from "../../components/CopyButton";
import { ErrorBox } from "../../components/ErrorBox";
import { count } from "../../components/format";
import { Tabs } from "../../components/Tabs";
import { href, setQuery } from "../../app/router";
import { Legend } from "./Legend";
import { NotableTokens } from "./NotableTokens";
import { OVERLAYS, type Overlay } from "./overlays";
import { TokenBlock, tokenId } from "./TokenBlock";
import { TokenNumbers } from "./TokenNumbers";
import { BLOCK, TokenStore } from "./tokenStore";
import type { TrajectoryTokens } from "./types";

const NEAR = "1200px 0px";
const ESTIMATE = 320; // px of a block that was never rendered
const SETTLE = 6; // times that a jump is repeated while blocks above get their real heights

export function Tokens({ whole, query }: { whole: TrajectoryTokens; query: URLSearchParams }) {
  const store = useMemo(() => new TokenStore(whole), [whole]);
  const [, setRound] = useState(0);
  useEffect(() => store.subscribe(() => setRound((round) => round + 1)), [store]);

  const trained = whole.state === "trained";
  const overlays = OVERLAYS.filter((overlay) => trained || !overlay.needsTraining);
  const overlay = overlays.find((one) => one.key === query.get("color")) ?? (overlays[0] as Overlay);
  const legend = useMemo(() => overlay.legend(whole), [overlay, whole]);

  const asked = number(query.get("token"), whole.num_tokens);
  const [selected, setSelected] = useState<number | null>(asked);
  const [pointed, setPointed] = useState<number | null>(null);
  const box = useRef<HTMLDivElement>(null);
  const { near, heights } = useNear(box, store);
  const jump = useRef<{ token: number; left: number } | null>(asked === null ? null : { token: asked, left: SETTLE });

  useEffect(() => {
    if (asked !== null && asked !== selected) go(asked);
  }, [asked]);
  useEffect(() => {
    const timer = setTimeout(() => {
      if (selected !== asked) setQuery({ token: selected });
    }, 250); // browsers limit how often the address may change
    return () => clearTimeout(timer);
  }, [selected]);
  useLayoutEffect(() => settle(jump, box.current));

  /** Select a token and scroll to it. */
  function go(token: number): void {
    jump.current = { token, left: SETTLE };
    setSelected(token);
    setRound((round) => round + 1);
  }

  function step(to: number | null): void {
    if (to === null) return;
    const token = Math.max(0, Math.min(whole.num_tokens - 1, to));
    setSelected(token);
    const element = document.getElementById(tokenId(token));
    if (element) element.scrollIntoView({ block: "nearest" });
    else go(token);
  }

  function onKey(event: KeyboardEvent): void {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const at = selected ?? -1;
    const moves: Record<string, () => number | null> = {
      ArrowRight: () => at + 1,
      ArrowLeft: () => at - 1,
      ArrowDown: () => besideLine(at, 1),
      ArrowUp: () => besideLine(at, -1),
      PageDown: () => at + 100,
      PageUp: () => at - 100,
      Home: () => 0,
      End: () => whole.num_tokens - 1,
    };
    const move = moves[event.key];
    if (!move) return;
    event.preventDefault();
    step(move());
  }

  const jumpBlock = jump.current ? Math.floor(jump.current.token / BLOCK) : -1;
  const shown = pointed ?? selected;
  return (
    <section class="tokens-view" aria-label="Tokens">
      <h2>
        Tokens <span class="muted">{count(whole.num_tokens)}{trained && `, ${count(whole.num_trained)} trained`}</span>
      </h2>
      <Tabs
        label="Colour tokens by"
        tabs={overlays.map((one) => ({
          label: one.label,
          href: href(`/trajectories/${encodeURIComponent(whole.id)}`, { ...Object.fromEntries(query), color: one.key, token: selected }),
          current: one === overlay,
        }))}
      />
      <Legend overlay={overlay} whole={whole} legend={legend} />
      {store.error && <ErrorBox error={store.error} onRetry={() => store.retry()} />}
      <div class="tokens-and-numbers">
        <div
          ref={box}
          class={`tokens overlay-${overlay.key}`}
          role="listbox"
          aria-label="Tokens. Arrow keys move from token to token."
          aria-activedescendant={selected === null ? undefined : tokenId(selected)}
          tabIndex={0}
          dir="ltr"
          onKeyDown={onKey}
          onMouseOver={(event) => setPointed(tokenAt(event.target))}
          onMouseLeave={() => setPointed(null)}
          onClick={(event) => {
            const token = tokenAt(event.target);
            if (token !== null) setSelected(token);
          }}
        >
          {Array.from({ length: store.numBlocks }, (_, block) => {
            const isNear = near.has(block) || Math.abs(block - jumpBlock) <= 1;
            return (
              <div key={block} class="block" data-block={block} role="presentation" style={{ minHeight: isNear ? undefined : `${heights.get(block) ?? ESTIMATE}px` }}>
                {isNear && (
                  <TokenBlock
                    store={store}
                    block={block}
                    overlay={overlay}
                    legend={legend}
                    selected={selected !== null && Math.floor(selected / BLOCK) === block ? selected : -1}
                    columns={store.columns(block * BLOCK)}
                  />
                )}
              </div>
            );
          })}
        </div>
        <aside class="token-aside">
          <TokenNumbers store={store} token={shown} />
          {selected !== null && (
            <p>
              <CopyButton text={addressOf(whole.id, selected, query)} label="Copy link to token" of={String(selected)} />
              {shown !== selected && <Badge>selected: {selected}</Badge>}
            </p>
          )}
          <NotableTokens whole={whole} onJump={go} selected={selected} />
        </aside>
      </div>
    </section>
  );
}

function number(text: string | null, limit: number): number | null {
  const value = text === null || !/^\d{1,9}$/.test(text) ? NaN : Number(text);
  return value < limit ? value : null;
}

function addressOf(id: string, token: number, query: URLSearchParams): string {
  const address = new URL(location.href);
  address.hash = href(`/trajectories/${encodeURIComponent(id)}`, { ...Object.fromEntries(query), token });
  return address.href;
}

function tokenAt(target: EventTarget | null): number | null {
  const element = target instanceof Element ? target.closest("[data-token]") : null;
  return element instanceof HTMLElement ? Number(element.dataset["token"]) : null;
}

/** Return the token on the next or previous line, at about the same place. */
function besideLine(at: number, lines: 1 | -1): number | null {
  const element = document.getElementById(tokenId(at));
  if (!element) return at + lines;
  const from = element.getBoundingClientRect();
  const middle = (from.left + from.right) / 2;
  let best: number | null = null;
  let line: number | null = null;
  let distance = Infinity;
  for (let token = at + lines; ; token += lines) {
    const next = document.getElementById(tokenId(token));
    if (!next) return best ?? (token === at + lines ? null : token - lines);
    const place = next.getBoundingClientRect();
    if (Math.abs(place.top - from.top) < from.height / 2) continue;
    line ??= place.top;
    if (Math.abs(place.top - line) > from.height / 2) return best;
    const gap = Math.abs((place.left + place.right) / 2 - middle);
    if (gap < distance) [best, distance] = [token, gap];
  }
}

/** Scroll to the token of a jump, again while blocks above it get their real heights. */
function settle(jump: { current: { token: number; left: number } | null }, box: HTMLDivElement | null): void {
  const wanted = jump.current;
  if (!wanted || !box) return;
  const element = document.getElementById(tokenId(wanted.token));
  if (!element) {
    box.querySelector(`[data-block="${Math.floor(wanted.token / BLOCK)}"]`)?.scrollIntoView({ block: "center" });
    return;
  }
  element.scrollIntoView({ block: "center" });
  wanted.left -= 1;
  if (wanted.left <= 0) jump.current = null;
  else requestAnimationFrame(() => settle(jump, box));
}

/** Return the blocks near the part in sight, and the heights of those that were rendered once. */
function useNear(box: { current: HTMLDivElement | null }, store: TokenStore): { near: Set<number>; heights: Map<number, number> } {
  const [near, setNear] = useState<Set<number>>(new Set([0]));
  const heights = useRef(new Map<number, number>()).current;
  useEffect(() => {
    const observer = new IntersectionObserver(
      (entries) => {
        setNear((old) => {
          const next = new Set(old);
          for (const entry of entries) {
            const block = Number((entry.target as HTMLElement).dataset["block"]);
            if (entry.isIntersecting) next.add(block);
            else if (next.delete(block)) heights.set(block, entry.boundingClientRect.height);
          }
          return next;
        });
      },
      { root: box.current, rootMargin: NEAR },
    );
    for (const block of box.current?.querySelectorAll("[data-block]") ?? []) observer.observe(block);
    return () => observer.disconnect();
  }, [store]);
  return { near, heights };
}
