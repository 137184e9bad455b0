import hashlib
import io
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from landscape.data import archive
from landscape.data.archive import download, md5_of, unpack
from landscape.errors import InputError

BODY = bytes(range(256)) * 5000
MD5 = hashlib.md5(BODY).hexdigest()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/absent":
            return self.send_error(404)
        self.send_response(200)
        if self.path != "/unsized":
            self.send_header("Content-Length", str(len(BODY) + 10 * (self.path == "/short")))
        self.end_headers()
        self.wfile.write(BODY)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


@pytest.mark.parametrize("place", ["/whole", "/unsized"])
def test_a_download_arrives_whole_and_leaves_nothing_else(server, tmp_path, place):
    target = tmp_path / "new" / "file.tar.gz"
    download(server + place, target, MD5, progress=False)
    assert target.read_bytes() == BODY and [p.name for p in target.parent.iterdir()] == ["file.tar.gz"]


@pytest.mark.parametrize(("place", "md5", "message"), [
    ("/absent", MD5, "cannot be downloaded .HTTP Error 404"),
    ("/short", MD5, "1280000 of 1280010 bytes came"),
    ("/whole", "0" * 32, f"has MD5 {MD5}, expected {'0' * 32}"),
])
def test_a_failed_download_leaves_the_folder_as_it_was(server, tmp_path, place, md5, message):
    target = tmp_path / "file.tar.gz"
    target.write_text("what was there")
    with pytest.raises(InputError, match=message) as caught:
        download(server + place, target, md5, progress=False)
    assert "\n" not in str(caught.value) and target.read_text() == "what was there"
    assert [p.name for p in tmp_path.iterdir()] == ["file.tar.gz"]


def test_an_interrupted_download_leaves_nothing(server, tmp_path, monkeypatch):
    class Interrupted(archive.tqdm):
        def update(self, n=1):
            raise KeyboardInterrupt

    monkeypatch.setattr(archive, "tqdm", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        download(server + "/whole", tmp_path / "file", MD5, progress=False)
    assert not list(tmp_path.iterdir())


def test_no_server_is_one_clear_error_and_makes_no_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as closed:
        port = closed.server_port
    with pytest.raises(InputError, match="cannot be downloaded .*refused"):
        download(f"http://127.0.0.1:{port}/x", tmp_path / "new" / "file", MD5, progress=False)
    assert not (tmp_path / "new").exists()


def test_progress_is_a_bar_on_a_terminal_a_line_elsewhere_and_silent_on_request(server, tmp_path, capsys, monkeypatch):
    download(server + "/whole", tmp_path / "file", MD5, progress=False)
    assert capsys.readouterr().err == ""
    download(server + "/whole", tmp_path / "file", MD5)
    assert capsys.readouterr().err == "downloading file (1 MB)\n"
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    download(server + "/whole", tmp_path / "file", MD5)
    assert "100%" in capsys.readouterr().err


def write_tar(path, members):
    """Write a tar.gz; a member is (name, bytes) or (name, TarInfo type, link target)."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content, *target in members:
            info = tarfile.TarInfo(name)
            if target:
                info.type, info.linkname = content, target[0]
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return md5_of(path)


@pytest.fixture
def path(tmp_path):
    (tmp_path / "data").mkdir()
    return tmp_path / "data" / "a.tar.gz"


def test_an_archive_unpacks_beside_itself_and_leaves_nothing_else(path):
    md5 = write_tar(path, [("folder/one", b"1"), ("folder/sub/two", b"2")])
    folder = unpack(path, "folder", md5)
    assert folder == path.parent / "folder" and (folder / "one").read_bytes() == b"1"
    assert (folder / "sub" / "two").read_bytes() == b"2"
    assert sorted(p.name for p in path.parent.iterdir()) == ["a.tar.gz", "folder"]


@pytest.mark.parametrize("bad", [
    ("../outside", b"x"),
    ("folder/../../outside", b"x"),
    ("/tmp/landscape-outside", b"x"),
    ("folder/link", tarfile.SYMTYPE, "../../outside"),
    ("folder/link", tarfile.SYMTYPE, "one"),
    ("folder/link", tarfile.LNKTYPE, "folder/one"),
    ("folder/pipe", tarfile.FIFOTYPE, ""),
])
@pytest.mark.parametrize("has_filter", [True, False])
def test_an_archive_that_leads_out_of_its_folder_is_refused_whole(path, bad, has_filter, monkeypatch):
    if not has_filter:  # Python 3.11.0 to 3.11.3
        monkeypatch.delattr(tarfile, "data_filter")
    md5 = write_tar(path, [("folder/one", b"1"), bad])
    with pytest.raises(InputError, match="a link or a name that leads out"):
        unpack(path, "folder", md5)
    assert [p.name for p in path.parent.iterdir()] == ["a.tar.gz"]
    assert [p.name for p in path.parent.parent.iterdir()] == ["data"]


def test_a_damaged_archive_is_one_clear_error(path):
    md5 = write_tar(path, [("folder/one", BODY)])
    with pytest.raises(InputError, match="has MD5 .*, expected 00"):
        unpack(path, "folder", "0" * 32)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match=f"expected {md5}"):
        unpack(path, "folder", md5)
    with pytest.raises(InputError, match="cannot be unpacked"):
        unpack(path, "folder", md5_of(path))
    path.write_bytes(b"no archive")
    with pytest.raises(InputError, match="cannot be unpacked"):
        unpack(path, "folder", md5_of(path))
    assert [p.name for p in path.parent.iterdir()] == ["a.tar.gz"]


def test_an_archive_of_something_else_or_of_too_much_is_refused(path, monkeypatch):
    md5 = write_tar(path, [("other/one", b"1")])
    with pytest.raises(InputError, match="holds no folder folder"):
        unpack(path, "folder", md5)
    monkeypatch.setattr(archive, "LARGEST", 0)
    with pytest.raises(InputError, match="unpacks to more than 0 bytes"):
        unpack(path, "other", md5)


def test_a_folder_that_another_process_unpacked_meanwhile_is_kept(path):
    md5 = write_tar(path, [("folder/one", b"1")])
    (path.parent / "folder").mkdir()
    (path.parent / "folder" / "one").write_bytes(b"theirs")
    assert (unpack(path, "folder", md5) / "one").read_bytes() == b"theirs"
