// Search on pages that are opened as files: browsers give these no workers, so the script of one runs in a hidden frame.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.appendChild(frame);
      const scope = frame.contentWindow;
      scope.importScripts = (...urls) => Promise.all(urls.map((each) => load(new URL(each, url))));
      const load = (each) => new Promise((resolve, reject) => {
        const script = frame.contentDocument.createElement("script");
        Object.assign(script, { src: each, async: false, onload: resolve, onerror: reject });
        frame.contentDocument.head.appendChild(script);
      });
      const answer = (data) => {
        const event = new MessageEvent("message", { data });
        this.dispatchEvent(event);
        if (this.onmessage) this.onmessage(event);
      };
      scope.postMessage = answer;
      this.deliver = load(url).then(() => (data) => {
        scope.dispatchEvent(new scope.MessageEvent("message", { data }));
      });
    }
    postMessage(data) {
      this.deliver.then((deliver) => deliver(data));
    }
    terminate() {}
  };
}
