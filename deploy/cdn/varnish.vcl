# Varnish in front of the gateways, as it would stand at the edge of a CDN. It passes announces on, and keeps the answers to scrapes and
# full scrapes for as long as the gateways' Cache-Control says. From the repository, as root:
#
#   varnishd -f $PWD/deploy/cdn/varnish.vcl -a :80 -p http_gzip_support=off -s file,/var/lib/varnish/swarmgate,20g
#   go run ./gateway --trusted-proxies 127.0.0.1
#
# Without the parameter it would know gzip only. UDP does not come this way: see nginx-udp.conf.
vcl 4.1;

backend gateway { # more of them: https://varnish-cache.org/docs/trunk/users-guide/vcl-backends.html#directors
    .host = "127.0.0.1";
    .port = "6969";
}

sub vcl_recv {
    if (req.method != "GET" && req.method != "HEAD") {
        return (synth(405));
    }
    # Varnish has added the address to what the client forged.
    set req.http.X-Forwarded-For = client.ip;

    if (req.url !~ "^[^?]*/scrape(\?|$)" && req.url !~ "^/stats\?(.*&)?mode=tpbs(&|$)") {
        return (pass);
    }
    # HTTP/1.0 could not tell a list of all swarms that broke off from a whole one.
    if (req.proto == "HTTP/1.0" && req.url !~ "[?&]info_hash=") {
        return (synth(505));
    }
    # A client has one variant of four, whatever it writes around them. A coding with a weight is left aside.
    if (req.http.Accept-Encoding ~ "(?i)(^|,) *zstd *(,|$)") {
        set req.http.Accept-Encoding = "zstd";
    } elsif (req.http.Accept-Encoding ~ "(?i)(^|,) *br *(,|$)") {
        set req.http.Accept-Encoding = "br";
    } elsif (req.http.Accept-Encoding ~ "(?i)(^|,) *gzip *(,|$)") {
        set req.http.Accept-Encoding = "gzip";
    } else {
        unset req.http.Accept-Encoding;
    }
    return (hash); # whatever cookies there are
}

sub vcl_hash {
    hash_data(req.url); # and no Host, which is the client's choice
    return (lookup);
}

sub vcl_backend_response {
    # One request asks the gateway; those that come meanwhile wait for it, and are sent a list of all swarms while it comes.
    # So nobody needs a stale answer.
    set beresp.grace = 0s;
    if (beresp.http.Cache-Control !~ "public") {
        set beresp.uncacheable = true;
        set beresp.ttl = 0s;
    }
    return (deliver);
}
