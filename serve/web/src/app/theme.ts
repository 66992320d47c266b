/** Light, dark, or as the system has it. */
import { computed, effect, signal } from "@preact/signals";

export type Theme = "system" | "light" | "dark";
const STORAGE = "tandem.theme";

function load(): Theme {
  try {
    const value = localStorage.getItem(STORAGE);
    return value === "light" || value === "dark" ? value : "system";
  } catch {
    return "system";
  }
}

export const theme = signal<Theme>(load());
const dark = matchMedia("(prefers-color-scheme: dark)");
const systemIsDark = signal(dark.matches);
dark.addEventListener("change", (event) => (systemIsDark.value = event.matches));
/** What is shown. Charts draw again when it changes. */
export const isDark = computed(() => theme.value === "dark" || (theme.value === "system" && systemIsDark.value));

effect(() => {
  if (theme.value === "system") delete document.documentElement.dataset["theme"];
  else document.documentElement.dataset["theme"] = theme.value;
});

export function setTheme(value: Theme): void {
  theme.value = value;
  try {
    localStorage.setItem(STORAGE, value);
  } catch {
    // it lasts as long as this tab
  }
}

/** Return a colour of the theme in force, such as color("--series-1"), for canvases. */
export function color(variable: string): string {
  return getComputedStyle(document.documentElement).getPropertyValue(variable).trim();
}
