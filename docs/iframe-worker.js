// The search runs in a Worker, which browsers refuse to a page that was opened from a folder. There,
// an invisible frame of the page runs the Worker's script.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      const started = new Promise((resolve) => (frame.onload = resolve));
      document.body.append(frame);
      this.frame = frame;
      this.ready = started.then(() => this.start(String(new URL(url, document.baseURI))));
    }

    start(url) {
      const inside = this.frame.contentWindow;
      inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      inside.importScripts = async (...urls) => {
        for (const one of urls) {
          await new Promise((resolve, reject) => {
            const script = inside.document.createElement("script");
            Object.assign(script, { src: one, onload: resolve, onerror: reject });
            inside.document.body.append(script);
          });
        }
      };
      return inside.importScripts(url);
    }

    postMessage(data) {
      const event = new MessageEvent("message", { data });
      this.ready.then(() => this.frame.contentWindow.dispatchEvent(event));
    }

    terminate() {
      this.frame.remove();
    }
  };
}
