"""A person at the page, whose actions are counted: by mouse, or by the keyboard alone."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from playwright.sync_api import Locator, Page, expect

type Hand = Literal["mouse", "keyboard"]

_MOST_TABS = 150
_NAME_OF_FOCUS = """() => {
  const at = document.activeElement;
  return at === null ? null : [at.tagName, at.getAttribute('aria-label') ?? '', at.innerText ?? '', at.name ?? ''];
}"""

_WATCH_THE_FOCUS = """() => {
  window.lost = [];
  let held = null, checked = null, tabbed = false;
  addEventListener('keydown', (event) => { tabbed = event.key === 'Tab'; }, true);
  const told = (one) => `${one.tagName} ${one.getAttribute('aria-label') ?? one.innerText ?? ''} ${one.name ?? ''}`;
  const isOutlined = (one) => [null, '::after'].some((part) => {
    const { outlineStyle, outlineWidth } = getComputedStyle(one, part);
    return outlineStyle !== 'none' && parseFloat(outlineWidth) >= 1;
  });
  const isUncovered = (one) => {
    const box = one.getBoundingClientRect();
    const [left, right] = [Math.max(0, box.left), Math.min(innerWidth, box.right)];
    const [top, bottom] = [Math.max(0, box.top), Math.min(innerHeight, box.bottom)];
    const there = left < right && top < bottom && document.elementFromPoint((left + right) / 2, (top + bottom) / 2);
    return there && (one.contains(there) || there.contains(one) || one.matches('a.row'));
  };
  const look = () => {
    const now = document.activeElement;
    if (now === null || now === document.body) {
      if (held !== null && !tabbed) window.lost.push(`nothing has the focus after ${held}`);
      held = null;
    } else {
      held = told(now);
      if (now !== checked && now.tagName !== 'MAIN') {
        if (!isOutlined(now)) window.lost.push(`the focus cannot be seen on ${held}`);
        if (!isUncovered(now)) window.lost.push(`the focus is out of sight on ${held}`);
      }
      checked = now;
    }
    requestAnimationFrame(look);
  };
  look();
}"""


@dataclass
class Person:
    """Opening a link, pressing a button, choosing, ticking and typing a text are actions; moving the focus is none.

    A keyboard's focus is watched: ``window.lost`` says where it went away by itself or could not be seen.
    """

    page: Page
    hand: Hand = "mouse"
    actions: int = 0

    def __post_init__(self) -> None:
        if self.hand == "keyboard":
            self.page.evaluate(_WATCH_THE_FOCUS)

    def press(
        self,
        label: str,
        *,
        role: Literal["button", "link", "checkbox"] = "button",
        exact: bool = True,
        first: bool = False,
    ) -> None:
        """Presses what has this accessible name, or the first of several that have."""
        found = self.page.get_by_role(role, name=label, exact=exact)
        self._act(found.first if first else found, "Space" if role == "checkbox" else "Enter")

    def submit(self, label: str) -> None:
        """Sends the form that is open: by its button, or by Enter in the field that has the focus."""
        form = self.page.locator("form").filter(has=self.page.locator(":focus"))
        button = form.get_by_role("button", name=label, exact=True)
        expect(button).to_be_enabled()
        if self.hand == "mouse":
            button.click()
        else:
            self.page.keyboard.press("Enter")
        self.actions += 1

    def type(self, field: str, text: str) -> None:
        """Types a text into the field of this name; if it has the focus already, without going there."""
        found = self.page.locator(f"[name='{field}']:visible")
        expect(found).to_be_enabled()
        if not found.evaluate("(one) => one === document.activeElement"):
            if self.hand == "mouse":
                found.click()
            else:
                self._move_to(found)
        self.page.keyboard.type(text)
        self.actions += 1

    def choose(self, field: str, option: str) -> None:
        """Chooses an option of a list by its words."""
        found = self.page.get_by_role("combobox", name=field, exact=True)
        if self.hand == "mouse":
            found.select_option(option)
        else:
            self._move_to(found)
            self.page.keyboard.type(option)
        expect(found.locator("option:checked")).to_have_text(option)
        self.actions += 1

    def type_instant(self, field: str, at: datetime) -> None:
        """Types a date and a time into the field of this name, in the parts that the en-US locale has."""
        found = self.page.locator(f"[name='{field}']:visible")
        self._move_to(found)
        self.page.keyboard.type(at.strftime("%m%d%Y"))
        self.page.keyboard.press("ArrowRight")
        self.page.keyboard.type(at.strftime("%I%M%S%p" if found.get_attribute("step") else "%I%M%p"))
        self.actions += 1

    def open_row(self, label: str) -> None:
        """Opens a row of a list; the keyboard moves there by j."""
        row = self.page.locator("tr").filter(has_text=label).locator("a.row").first
        expect(row).to_be_visible()
        if self.hand == "mouse":
            row.click()
        else:
            for _ in range(_MOST_TABS):
                if row.evaluate("(one) => one === document.activeElement"):
                    break
                self.page.keyboard.press("j")
            self.page.keyboard.press("Enter")
        self.actions += 1

    def _act(self, found: Locator, key: str) -> None:
        expect(found).to_be_visible()
        if self.hand == "mouse":
            found.click()
        else:
            self._move_to(found)
            self.page.keyboard.press(key)
        self.actions += 1

    def _move_to(self, found: Locator) -> None:
        for _ in range(_MOST_TABS):
            if found.evaluate("(one) => one === document.activeElement"):
                return
            self.page.keyboard.press("Tab")
        raise AssertionError(f"Tab does not reach {found}: the focus is on {self.page.evaluate(_NAME_OF_FOCUS)}")
