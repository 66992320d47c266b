/** The top of the views of one model: its name, and links to them. */
import { href, segment } from "../../app/router";
import { AlertMark } from "../../components/AlertMark";
import { Tabs } from "../../components/Tabs";
import { Text } from "../../components/Text";
import type { Model } from "./types";

type ModelView = "curves" | "versions" | "groups" | "settings";

export function ModelHead({ model, current }: { model: Model; current: ModelView }) {
  const at = `/models/${segment(model.id)}`;
  const views: [ModelView, string, string][] = [
    ["curves", "Curves", at],
    ["versions", "Versions", `${at}/versions`],
    ["groups", "Groups", `${at}/groups`],
    ["settings", "Settings", `${at}/settings`],
  ];
  return (
    <>
      <h1><Text value={`${model.project}/${model.name}`} max={120} /> <AlertMark model={model.id} /></h1>
      <Tabs label="Views of the model" tabs={views.map(([name, label, to]) => ({ label, href: href(to), current: name === current }))} />
    </>
  );
}
