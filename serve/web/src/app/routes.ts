/** The one list of views. The first route that fits is shown; each view's code is loaded when it is first shown. */
import type { Route } from "./router";

export const routes: Route[] = [
  {
    path: "/",
    title: "Overview",
    load: async () => (await import("../views/overview/Overview")).Overview,
    nav: { label: "Overview", group: "Train", shortcut: "o" },
  },
  {
    path: "/cluster",
    title: "Engines and learners",
    load: async () => (await import("../views/cluster/Cluster")).Cluster,
    role: "train",
    nav: { label: "Cluster", group: "Operate", shortcut: "c" },
  },
  {
    path: "/keys",
    title: "Keys",
    load: async () => (await import("../views/keys/Keys")).Keys,
    nav: { label: "Keys", group: "Account", shortcut: "k" },
  },
  {
    path: "/start",
    title: "Start",
    load: async () => (await import("../views/start/Start")).Start,
    nav: { label: "Start", group: "Account", shortcut: "s" },
  },
];
