/** Names of the groups of a bill. */
import type { VNode } from "preact";
import { href, segment } from "../../app/router";
import { lookOf } from "../../components/phases";
import { Text } from "../../components/Text";
import type { GroupBy, UsageItem } from "./types";

/** A group's name as plain text. */
export function nameOf(item: UsageItem, by: GroupBy): string {
  switch (by) {
    case "model":
      return withoutEntity(item.model_name ?? item.model ?? "");
    case "key":
      return item.key ? item.key_name || `deleted key ${item.key.slice(0, 8)}` : "the service's own jobs";
    case "project":
      return item.project || "base models";
    case "job":
      return item.job || "no job";
    case "phase":
      return item.phase === "sample" ? "Sampling" : lookOf(item.phase ?? "").label;
    case "version":
      return (item.version ?? "").replace(/:step-1$/, ", all versions");
    case "base_model":
      return item.base_model ?? "";
  }
}

/** The same as a link where there is something to see. */
export function GroupName({ item, by }: { item: UsageItem; by: GroupBy }): VNode {
  const text = <Text value={nameOf(item, by)} max={60} />;
  if (by === "model" && item.model && item.model !== item.base_model && isId(item.model)) return <a href={href(`/models/${segment(item.model)}`)}>{text}</a>;
  if (by === "job" && item.job) return <a href={href(item.job.startsWith("ftjob-") ? `/fine-tuning/${segment(item.job)}` : `/usage/jobs/${segment(item.job)}`)}>{text}</a>;
  return text;
}

function isId(text: string): boolean {
  return /^[0-9a-f-]{36}$/.test(text);
}

function withoutEntity(path: string): string {
  const parts = path.split("/");
  return parts.length === 3 ? parts.slice(1).join("/") : path;
}
