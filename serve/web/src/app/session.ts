/** The keys that this browser keeps, and the one that it uses. A key is sent in a header only, never in an address. */
import { computed, signal } from "@preact/signals";

export type Role = "infer" | "train" | "admin";
const ROLES: Role[] = ["infer", "train", "admin"];

/** A stored key, with what the service said about it. */
export interface StoredKey {
  key: string;
  id: string;
  name: string;
  entity: string;
  role: Role;
}

interface Stored {
  active: string | null;
  keys: StoredKey[];
}

const STORAGE = "tandem.session";
const NOBODY: Stored = { active: null, keys: [] };

function load(): Stored {
  try {
    const stored: unknown = JSON.parse(localStorage.getItem(STORAGE) ?? "null");
    return isStored(stored) ? stored : NOBODY;
  } catch {
    return NOBODY; // storage is off, or holds something else
  }
}

function isStored(value: unknown): value is Stored {
  return typeof value === "object" && value !== null && Array.isArray((value as Stored).keys);
}

const stored = signal<Stored>(load());
export const keys = computed(() => stored.value.keys);
/** The key in use, null without one. */
export const session = computed(() => stored.value.keys.find((key) => key.id === stored.value.active) ?? null);
/** A sentence for the sign-in form, when the service refused the key in use. */
export const notice = signal<string | null>(null);

function save(next: Stored): void {
  stored.value = next;
  try {
    localStorage.setItem(STORAGE, JSON.stringify(next));
  } catch {
    // the key lasts as long as this tab
  }
}

window.addEventListener("storage", (event) => {
  if (event.key === STORAGE || event.key === null) stored.value = load(); // another tab signed in or out
});

/** Use a key, and keep it. */
export function signIn(key: StoredKey): void {
  notice.value = null;
  save({ active: key.id, keys: [...stored.value.keys.filter((other) => other.id !== key.id), key] });
}

/** Use another stored key; null shows the sign-in form and keeps the keys. */
export function use(id: string | null): void {
  save({ ...stored.value, active: id });
}

/** Remove a key from this browser, by default the one in use. */
export function signOut(id = stored.value.active): void {
  const rest = stored.value.keys.filter((key) => key.id !== id);
  save({ active: stored.value.active === id ? null : stored.value.active, keys: rest });
}

/** True if the key in use has this role, or one that includes it. */
export function may(role: Role): boolean {
  return session.value !== null && ROLES.indexOf(session.value.role) >= ROLES.indexOf(role);
}
