// Click an alias onto a model version in the MLflow UI, and wait until the page shows a text.
// Arguments, as one JSON document: server, model, version, alias (none: click nothing),
// text (none: wait for nothing), times (so often), timeout_s, screenshot (none: no picture).
// Prints one JSON document: when the alias was saved and the text seen, in seconds since 1970.
import { createRequire } from 'node:module';

const { chromium } = createRequire(`${process.env.OML_MLFLOW_PLAYWRIGHT}/`)('playwright-core');
const asked = JSON.parse(process.argv[2]);
const page_url =
  `${asked.server}/#/models/${encodeURIComponent(asked.model)}/versions/${asked.version}`;
const flags = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
  '--disable-background-networking', '--disable-component-update', '--disable-sync'];
const now = () => Date.now() / 1000;

const browser = await chromium.launch({ executablePath: asked.chromium, args: flags });
try {
  const page = await browser.newPage({ viewport: { width: 1500, height: 1400 } });
  page.setDefaultTimeout(20_000);
  await page.addInitScript(() => {
    localStorage.setItem('mlflow.assistant.panelOpen_v1', 'false');
    localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true');
  });
  const heading = page.getByRole('heading', { name: `Version ${asked.version}` });
  await page.goto(page_url);
  await heading.waitFor();
  const told = {};
  if (asked.alias) {
    await page.getByTitle(/aliases/i).first().click();
    const dialog = page.getByRole('dialog');
    const box = dialog.getByRole('combobox');
    await box.fill(asked.alias);
    await box.press('Enter');
    await dialog.getByText('Add/Edit alias for model version').click();
    const answered = page.waitForResponse(
      (answer) => answer.url().includes('registered-models/alias'),
    );
    await dialog.getByRole('button', { name: 'Save aliases' }).click();
    told.clicked_at = now();
    const status = (await answered).status();
    if (status !== 200) throw new Error(`the server answered ${status}`);
    await dialog.waitFor({ state: 'hidden' });
  }
  if (asked.text) {
    const deadline = now() + asked.timeout_s;
    const shown = page.getByText(asked.text).nth(asked.times - 1);
    for (;;) {
      try {
        await shown.waitFor({ timeout: 500 });
        break;
      } catch (error) {
        if (now() > deadline) {
          if (asked.screenshot) await page.screenshot({ path: asked.screenshot, fullPage: true });
          throw new Error(`${asked.timeout_s} s, and the page does not show: ${asked.text}`);
        }
      }
      await page.reload();
      await heading.waitFor();
    }
    told.shown_at = now();
    await shown.scrollIntoViewIfNeeded();
  }
  if (asked.screenshot) {
    await page.getByText('Aliases', { exact: true }).waitFor();
    await page.screenshot({ path: asked.screenshot });
  }
  console.log(JSON.stringify(told));
} finally {
  await browser.close();
}
