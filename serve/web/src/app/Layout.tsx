/** Navigation, header, and the view of the address. */
import { signal } from "@preact/signals";
import type { ComponentType } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { Badge } from "../components/Badge";
import { Dialog } from "../components/Dialog";
import { Empty } from "../components/Empty";
import { LiveMark } from "../components/LiveMark";
import { ErrorBox } from "../components/ErrorBox";
import { Loading } from "../components/Loading";
import { Text } from "../components/Text";
import { useAlertCount } from "./alertCount";
import { Boundary } from "./Boundary";
import { href, match, path, query, go, type Route, type ViewProps } from "./router";
import { routes } from "./routes";
import { keys, may, session, signOut, use, type StoredKey } from "./session";
import { addShortcut, shortcuts } from "./shortcuts";
import { setTheme, theme, type Theme } from "./theme";

const GROUPS = ["Train", "Look", "Operate", "Account"] as const;
const helpIsOpen = signal(false);
const menuIsOpen = signal(false);

export function Layout() {
  useEffect(() => {
    const removals = [addShortcut("?", "Show the shortcuts", () => (helpIsOpen.value = true))];
    for (const { path: to, nav, role } of routes) {
      if (nav?.shortcut && may(role ?? "infer")) removals.push(addShortcut(`g ${nav.shortcut}`, `Go to ${nav.label}`, () => go(to)));
    }
    return () => removals.forEach((remove) => remove());
  }, []);
  useAlertCount();
  const main = useRef<HTMLElement>(null);
  return (
    <div class="layout">
      <button type="button" class="skip" onClick={() => main.current?.focus()}>Skip to content</button>
      <Header />
      <Navigation />
      <main ref={main} tabIndex={-1}>
        <View />
      </main>
      {helpIsOpen.value && <Shortcuts />}
    </div>
  );
}

function Header() {
  const current = session.value as StoredKey;
  return (
    <header class="top">
      <button
        type="button"
        class="menu quiet"
        aria-expanded={menuIsOpen.value}
        aria-controls="navigation"
        onClick={() => (menuIsOpen.value = !menuIsOpen.value)}
      >
        Menu
      </button>
      <a class="brand" href="#/">Tandem</a>
      <span class="grow" />
      <LiveMark />
      <span class="who">
        <Text value={current.entity} /> <Badge>{current.role}</Badge>
      </span>
      <details class="account">
        <summary>Account</summary>
        <div class="popup">
          <p>
            Key <strong><Text value={current.name} /></strong> of <strong><Text value={current.entity} /></strong>, role {current.role}
          </p>
          {keys.value.filter((key) => key.id !== current.id).map((key) => (
            <button key={key.id} type="button" onClick={() => use(key.id)}>
              Use <Text value={`${key.entity}: ${key.name}`} /> ({key.role})
            </button>
          ))}
          <button type="button" onClick={() => use(null)}>Add another key</button>
          <label>
            Theme{" "}
            <select value={theme.value} onChange={(event) => setTheme(event.currentTarget.value as Theme)}>
              <option value="system">As the system</option>
              <option value="light">Light</option>
              <option value="dark">Dark</option>
            </select>
          </label>
          <button type="button" onClick={() => (helpIsOpen.value = true)}>Keyboard shortcuts</button>
          <a href="docs">API reference</a>
          <button type="button" onClick={() => signOut()}>Sign out</button>
        </div>
      </details>
    </header>
  );
}

function Navigation() {
  const shown = routes.filter((route) => route.nav && may(route.role ?? "infer"));
  return (
    <nav id="navigation" class={menuIsOpen.value ? "side open" : "side"} aria-label="Views">
      {GROUPS.map((group) => {
        const entries = shown.filter((route) => route.nav?.group === group);
        return entries.length === 0 ? null : (
          <section key={group}>
            <h2>{group}</h2>
            {entries.map((route) => (
              <a
                key={route.path}
                href={href(route.path)}
                aria-current={path.value === route.path ? "page" : undefined}
                onClick={() => (menuIsOpen.value = false)}
              >
                {route.nav?.label}
                <Count of={route.nav?.count?.() ?? 0} />
              </a>
            ))}
          </section>
        );
      })}
    </nav>
  );
}

function Count({ of }: { of: number }) {
  return of === 0 ? null : <Badge tone="bad"><span class="sr-only">(</span>{of > 99 ? "99+" : of}<span class="sr-only"> new)</span></Badge>;
}

function found(): { route: Route; params: Record<string, string> } | null {
  for (const route of routes) {
    const params = match(route, path.value);
    if (params) return { route, params };
  }
  return null;
}

const loaded = new Map<string, ComponentType<ViewProps>>();

function View() {
  const fitting = found();
  const route = fitting?.route;
  const [, setRound] = useState(0);
  const [error, setError] = useState<Error | null>(null);
  useEffect(() => {
    document.title = route ? `${route.title} · Tandem` : "Tandem";
    setError(null);
    if (!route || loaded.has(route.path)) return;
    route.load().then(
      (view) => {
        loaded.set(route.path, view);
        setRound((round) => round + 1);
      },
      () => setError(new Error("This view's code can't be loaded: the service was updated or doesn't answer. Reload the page.")),
    );
  }, [route]);
  if (!fitting || !route) return <Empty title="There is no such page"><a href="#/">Go to the overview</a></Empty>;
  if (!may(route.role ?? "infer")) {
    return <Empty title={`${route.title} needs a key with role ${route.role}`}>This key has role {session.value?.role}. An admin of your entity can create one under Keys.</Empty>;
  }
  if (error) return <ErrorBox error={error} />;
  const Shown = loaded.get(route.path);
  if (!Shown) return <Loading />;
  return (
    <Boundary key={path.value}>
      <Shown params={fitting.params} query={query.value} />
    </Boundary>
  );
}

function Shortcuts() {
  return (
    <Dialog title="Keyboard shortcuts" onClose={() => (helpIsOpen.value = false)}>
      <dl class="shortcuts">
        {shortcuts.value.map((shortcut) => (
          <div key={shortcut.keys}>
            <dt>{shortcut.keys.split(" ").map((key) => <kbd key={key}>{key}</kbd>)}</dt>
            <dd>{shortcut.label}</dd>
          </div>
        ))}
      </dl>
    </Dialog>
  );
}
