/** Tabs as links, so that each has an address. */
export interface Tab {
  label: string;
  href: string;
  current: boolean;
}

export function Tabs({ tabs, label }: { tabs: Tab[]; label: string }) {
  return (
    <nav class="tabs" aria-label={label}>
      {tabs.map((tab) => (
        <a key={tab.href} href={tab.href} aria-current={tab.current ? "page" : undefined}>{tab.label}</a>
      ))}
    </nav>
  );
}
