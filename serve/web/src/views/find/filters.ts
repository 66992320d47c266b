/** The filters of Find: their names in the address, and the parameters of the request. */
import type { Params } from "../../app/api";

export const FIELDS = [
  "text", "model", "step", "split", "reward_min", "reward_max", "metadata", "metrics", "errors", "sort", "job", "log", "group",
] as const;
export type Field = (typeof FIELDS)[number];
export type Filters = Record<Field, string>;

/** The choices of order, and what the service calls them. A text is searched in order of time alone. */
export const SORTS: Record<string, { label: string; params: Params; withText: boolean }> = {
  newest: { label: "Newest first", params: {}, withText: true },
  oldest: { label: "Oldest first", params: { order: "asc" }, withText: true },
  worst: { label: "Lowest reward first", params: { sort: "reward", order: "asc" }, withText: false },
  best: { label: "Highest reward first", params: { sort: "reward", order: "desc" }, withText: false },
};

export function readFilters(query: URLSearchParams): Filters {
  return Object.fromEntries(FIELDS.map((name) => [name, query.get(name) ?? ""])) as Filters;
}

/** A condition that can't be read, as a sentence. */
export class ConditionError extends Error {}

/** Return the request's parameters. Throws ConditionError. */
export function requestOf(filters: Filters): Params {
  const params: Record<string, string | number | boolean | null | undefined | readonly (string | number)[]> = {};
  for (const name of ["text", "model", "step", "split", "reward_min", "reward_max", "job", "log", "group"] as const) {
    if (filters[name] !== "") params[name] = filters[name];
  }
  if (filters.errors) params["errors"] = true;
  for (const part of parts(filters.metadata)) {
    const [, key, value] = /^([^=]+)=(.*)$/s.exec(part) ?? [];
    if (key === undefined || value === undefined) throw new ConditionError(`“${part}” isn't a condition on metadata. Write key=value, like task=7.`);
    params[`metadata.${key.trim()}`] = value.trim();
  }
  for (const part of parts(filters.metrics)) {
    const [, name, sign, value] = /^(.+?)\s*(>=|<=)\s*(\S+)$/.exec(part) ?? [];
    if (name === undefined || value === undefined) throw new ConditionError(`“${part}” isn't a condition on metrics. Write name>=number or name<=number, like length<=100.`);
    params[`metric.${name}.${sign === ">=" ? "min" : "max"}`] = value;
  }
  const sort = SORTS[filters.sort];
  return sort && (sort.withText || !filters.text) ? { ...params, ...sort.params } : params;
}

function parts(text: string): string[] {
  return text.split(",").map((part) => part.trim()).filter(Boolean);
}
