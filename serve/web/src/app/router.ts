/** Hash routes: "#/models/ID?step=3" is the view of "/models/:id" with the query "step=3". */
import { computed, signal } from "@preact/signals";
import type { ComponentType } from "preact";
import type { Role } from "./session";

/** Every view gets these. */
export interface ViewProps {
  params: Record<string, string>;
  query: URLSearchParams;
}

export interface Route {
  /** Such as "/models/:id". The first route that fits is shown. */
  path: string;
  title: string;
  /** Loads the view's code when it is first shown. */
  load: () => Promise<ComponentType<ViewProps>>;
  /** The role that the view needs, by default infer. */
  role?: Role;
  /** An entry in the navigation. `count` is shown beside it unless it is 0. */
  nav?: { label: string; group: "Train" | "Look" | "Operate" | "Account"; shortcut?: string; count?: () => number };
}

function read(): { path: string; query: URLSearchParams } {
  const [path = "", query = ""] = location.hash.replace(/^#/, "").split(/\?(.*)/s);
  return { path: path || "/", query: new URLSearchParams(query) };
}

const current = signal(read());
window.addEventListener("hashchange", () => (current.value = read()));
export const path = computed(() => current.value.path);
export const query = computed(() => current.value.query);

/** Return the address of a view, for links: href("/models/1", {step: 3}). Encode ids with `segment`. */
export function href(to: string, values: Record<string, string | number | null | undefined> = {}): string {
  const search = new URLSearchParams();
  for (const [name, value] of Object.entries(values)) {
    if (value !== null && value !== undefined && value !== "") search.set(name, String(value));
  }
  const text = search.toString();
  return `#${to}${text ? `?${text}` : ""}`;
}

/** Encode one part of a path. */
export function segment(value: string | number): string {
  return encodeURIComponent(String(value));
}

/** Show a view. */
export function go(to: string, values?: Parameters<typeof href>[1]): void {
  location.hash = href(to, values);
}

/** Change parts of the query in place: the address stays a permalink, and Back leaves the view. */
export function setQuery(values: Record<string, string | number | null | undefined>): void {
  const search = Object.fromEntries(current.value.query);
  const address = href(current.value.path, { ...search, ...values });
  history.replaceState(history.state, "", address);
  current.value = read();
}

/** Return the parameters if a path fits a route, null otherwise. */
export function match(route: Route, actual: string): Record<string, string> | null {
  const wanted = route.path.split("/");
  const parts = actual.replace(/\/$/, "").split("/");
  if (actual === "/") return route.path === "/" ? {} : null;
  if (wanted.length !== parts.length) return null;
  const params: Record<string, string> = {};
  for (const [index, part] of wanted.entries()) {
    const value = parts[index] ?? "";
    if (part.startsWith(":")) {
      const decoded = decode(value);
      if (!decoded) return null;
      params[part.slice(1)] = decoded;
    } else if (part !== value) return null;
  }
  return params;
}

function decode(value: string): string {
  try {
    return decodeURIComponent(value);
  } catch {
    return value; // a link that was cut off
  }
}
